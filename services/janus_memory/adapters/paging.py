"""Pages of rows that an answer can hold."""

from typing import Any

from janus_kit.postgres import Connection
from janus_memory.window import MAX_BYTES

# Rows fetched at a time: an answer has few large rows or many small ones.
_PREFETCH = 64
# Ids, scope and times of a record, at their longest.
_FRAME_BYTES = 1024


async def page(connection: Connection, limit: int, sql: str, *arguments: Any) -> tuple[list[Any], bool]:
    """The first rows of a statement, at most ``limit``, and whether there are more.

    Their column ``size``, in bytes, adds up to what an answer may hold, of
    which only the first row may be more. The statement is read no further.
    """
    rows: list[Any] = []
    size = 0
    await connection.begin()
    async for row in connection.cursor(sql, *arguments, prefetch=_PREFETCH):
        size += row["size"] + _FRAME_BYTES
        if len(rows) == limit or (rows and size > MAX_BYTES):
            return rows, True
        rows.append(row)
    return rows, False
