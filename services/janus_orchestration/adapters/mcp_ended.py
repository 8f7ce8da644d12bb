"""The end of a connection to an MCP server, and what is known of it."""

import asyncio


class Ended(asyncio.Event):
    """Set once nothing more will be heard of the server over this connection."""

    why = ""
    """What the transport has seen go wrong, in our words and without what could be secret; empty: nothing."""
