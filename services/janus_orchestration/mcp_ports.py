"""What tools of MCP servers need of the protocol: connections, free of any SDK."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from janus_orchestration.model import Tool, ToolOutput

Progress = Callable[[float | None, str], None]
"""Told how far a call is; must not block."""


class McpLost(Exception):
    """The connection ended; whether the server had begun what was asked is not known.

    Its text says why, without a word of the server's and without secrets; empty: that is not known.
    """


class McpNotTaken(Exception):
    """The server never had the call."""


class McpSession(Protocol):
    """An open connection to a server. Its methods raise McpLost once it has ended."""

    async def tools(self) -> Sequence[Tool]:
        """What the server offers, as far as it keeps our rules, under our names."""

    async def changed(self) -> None:
        """Wait until the server says that its tools have changed. May be missed."""

    async def call(self, tool: str, arguments: Mapping[str, Any], idempotency_key: str, tell: Progress) -> ToolOutput:
        """Run a tool, by the server's name for it.

        Whatever the server answers is an output. Raises McpNotTaken. When the
        caller is cancelled, the server is told that nobody waits any more.
        """


class McpOffer(Protocol):
    """What a server offered last, however often Janus was started anew since. Raises what its store does."""

    async def read(self) -> Sequence[Tool]:
        """Its tools; none where it never answered as it is set up now."""

    async def write(self, tools: Sequence[Tool]) -> None:
        """Keep them in place of those before."""


Connect = Callable[[], AbstractAsyncContextManager[McpSession]]
"""A new connection to one server. Entering raises whatever went wrong; leaving it leaves nothing behind."""
