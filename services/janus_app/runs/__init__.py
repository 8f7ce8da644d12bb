"""`janus run` and `janus agent`."""
