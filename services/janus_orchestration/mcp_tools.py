"""Tools of MCP servers as a source of tools.

A tool goes by `<server>.<tool>`. Which servers there are is the operator's to
say; an agent only names tools.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager

from janus_orchestration.mcp_server import McpServer
from janus_orchestration.model import Tool, ToolOutput
from janus_orchestration.ports import ToolReport, ToolTask


class McpTools:
    """A ``ToolSource``. ``tenants`` are those that may use a server; none of them for all."""

    knows_calls = False

    def __init__(self, servers: Sequence[McpServer], tenants: Mapping[str, Collection[str]]) -> None:
        self._servers = {server.name: server for server in servers}
        self._tenants = tenants

    async def find(self, tenant: str, names: Collection[str]) -> Sequence[Tool]:
        wanted: dict[McpServer, list[str]] = {}
        for name in names:
            if (server := self._server(tenant, name)) is not None:
                wanted.setdefault(server, []).append(name)
        offered = await asyncio.gather(*(server.tools() for server in wanted))
        return [
            tools[name]
            for tools, asked in zip(offered, wanted.values(), strict=True)
            for name in asked
            if name in tools
        ]

    async def call(self, tenant: str, task: ToolTask, report: ToolReport) -> ToolOutput:
        server = self._server(tenant, task.tool.name)
        if server is None:
            return ToolOutput(f"there is no tool named '{task.tool.name}'", is_error=True)
        return await server.call(task.tool.name.partition(".")[2], task, report)

    def _server(self, tenant: str, tool: str) -> McpServer | None:
        name = tool.partition(".")[0]
        allowed = self._tenants.get(name, ())
        return self._servers.get(name) if not allowed or tenant in allowed else None


@asynccontextmanager
async def kept_connected(servers: Sequence[McpServer]) -> AsyncIterator[None]:
    """Keep the servers connected within the block; leaving it ends every connection and process."""
    owners = [asyncio.create_task(server.keep(), name=f"mcp-{server.name}") for server in servers]
    try:
        yield
    finally:
        for owner in owners:
            owner.cancel()
        await asyncio.gather(*owners, return_exceptions=True)
