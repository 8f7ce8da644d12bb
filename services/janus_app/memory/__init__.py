"""`janus memory …`: look at what is remembered, move it, erase it, and keep its stores in step."""
