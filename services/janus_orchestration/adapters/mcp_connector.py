"""How to reach MCP servers, before anything that this needs was imported."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec

from janus_kit.libraries import library
from janus_orchestration.mcp_ports import Connect, McpSession
from janus_orchestration.mcp_settings import McpServerSettings


def is_installed() -> bool:
    """Whether the `mcp` package is there."""
    return find_spec("mcp") is not None


def connector(name: str, settings: McpServerSettings) -> Connect:
    """What connects to a server."""

    @asynccontextmanager
    async def connect() -> AsyncIterator[McpSession]:
        sessions = await library("janus_orchestration.adapters.mcp_sessions")
        async with sessions.connection(name, settings) as session:
            yield session

    return connect
