"""Entry point of the `janus` command; imports nothing before Ctrl-C is heeded."""

import sys


def main() -> None:
    """Entry point of the `janus` script."""
    try:
        # Half a second, in which people change their minds as well.
        from janus_app.commands import app

        app()
    except KeyboardInterrupt:
        sys.exit(130)
