"""What an MCP server offered last, in Postgres."""

import json
from collections.abc import Sequence
from typing import Any

from janus_kit.postgres import Database
from janus_orchestration.adapters import rows
from janus_orchestration.model import Tool


class PostgresOffer:
    """An ``McpOffer`` of the server of this name; what it offered under another ``origin`` is not its."""

    def __init__(self, database: Database, server: str, origin: str) -> None:
        self._database = database
        self._server = server
        self._origin = origin

    async def read(self) -> Sequence[Tool]:
        async with self._database.worker() as connection:
            tools = await connection.fetchval(
                "SELECT tools FROM orchestration.mcp_server WHERE name = $1 AND origin = $2", self._server, self._origin
            )
        return [rows.tool_from(each) for each in json.loads(tools or "[]")]

    async def write(self, tools: Sequence[Tool]) -> None:
        async with self._database.worker() as connection:
            await connection.execute(
                "INSERT INTO orchestration.mcp_server AS known (name, origin, tools) VALUES ($1, $2, $3) "
                "ON CONFLICT (name) DO UPDATE SET origin = excluded.origin, tools = excluded.tools "
                "WHERE (known.origin, known.tools) <> (excluded.origin, excluded.tools)",
                self._server,
                self._origin,
                json.dumps([_record(tool) for tool in tools]),
            )


def _record(tool: Tool) -> dict[str, Any]:
    return {
        "name": tool.name,
        "description": tool.description,
        "schema": tool.schema_json,
        "side_effect": tool.side_effect.value,
        "timeout_s": tool.timeout.total_seconds(),
    }
