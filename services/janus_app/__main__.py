"""`python -m janus_app`, the same as the `janus` command."""

from janus_app.cli import main

main()
