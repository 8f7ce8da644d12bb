"""A program's messages that are too long to be read: the request is answered all the same, where it can be told."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import mcp_types
import pytest

from janus_orchestration.adapters import mcp_stdio
from janus_orchestration.adapters.mcp_ended import Ended

MOST_BYTES = 4_096
SHORT = '{"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}'
# Longer than what is kept of a line, and with all that could be taken for an id in it.
LONG = json.dumps({"content": [{"id": 9, "text": '","id":9}' * 2_000, "result": {"id": 9}}], "id": 9})


@asynccontextmanager
async def says(folder: Path, *lines: str, end: str = "\n") -> AsyncIterator[tuple[Any, Ended]]:
    """What is read of a program that writes these lines and goes on living until it is told to end."""
    (folder / "lines").write_text("\n".join(lines) + end)
    script = "import sys; sys.stdout.write(open('lines').read()); sys.stdout.flush(); sys.stdin.read()"
    ended = Ended()
    async with mcp_stdio.program(
        [sys.executable, "-c", script],
        name="shop",
        env={},
        cwd=str(folder),
        stderr=False,
        most_bytes=MOST_BYTES,
        ended=ended,
    ) as (read, _):
        yield read, ended


@pytest.mark.parametrize(
    ("line", "request_id"),
    [
        (f'{{"jsonrpc":"2.0","id":7,"result":{LONG}}}', 7),
        (f'{{ "id" : 7 , "jsonrpc" : "2.0" , "result" : {LONG} }}', 7),
        (f'{{"id":"a-7","result":{LONG},"jsonrpc":"2.0"}}', "a-7"),
        (f'{{"result":{LONG},"jsonrpc":"2.0","id":7}}', 7),
        (f'{{"result":{LONG},"id":7,"jsonrpc":"2.0"}}', 7),
        (f'{{"jsonrpc":"2.0","result":{LONG},"id":"a-7"}}\r', "a-7"),
        (f'{{"jsonrpc":"2.0","id":7,"error":{{"code":1,"message":"no","data":{LONG}}}}}', 7),
    ],
)
async def test_a_response_that_is_too_long_is_an_error_and_the_next_message_is_read(
    tmp_path: Path, line: str, request_id: int | str
) -> None:
    async with says(tmp_path, line, SHORT, line, SHORT) as (read, ended), asyncio.timeout(20):
        for _ in range(2):
            refused = (await read.receive()).message
            assert isinstance(refused, mcp_types.JSONRPCError)
            assert (refused.id, refused.error.message) == (request_id, "the response is too large")
            assert (await read.receive()).message.method == "notifications/tools/list_changed"
        assert not ended.is_set()


@pytest.mark.parametrize(
    "line",
    [
        f'{{"jsonrpc":"2.0","id":7,"method":"sampling/createMessage","params":{LONG}}}',
        f'{{"jsonrpc":"2.0","method":"notifications/message","params":{LONG}}}',
        f'{{"jsonrpc":"2.0","result":{LONG}}}',
        f'[{{"jsonrpc":"2.0","id":7,"result":{LONG}}}]',
        "x" * 10 * MOST_BYTES,
    ],
)
async def test_what_is_too_long_and_answers_no_request_that_could_be_told_ends_the_connection(
    tmp_path: Path, line: str
) -> None:
    async with says(tmp_path, line, SHORT) as (_, ended), asyncio.timeout(20):
        await ended.wait()


async def test_a_line_without_an_end_ends_the_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_stdio, "_MOST_SKIPPED", 4 * MOST_BYTES)
    async with says(tmp_path, f'{{"jsonrpc":"2.0","result":"{"x" * 50 * MOST_BYTES}', end="") as (_, ended):
        async with asyncio.timeout(20):
            await ended.wait()


@pytest.mark.parametrize("size", range(MOST_BYTES - 2, MOST_BYTES + 3))
async def test_a_response_at_the_bound_is_read_whole_or_refused(tmp_path: Path, size: int) -> None:
    line = '{"jsonrpc":"2.0","id":7,"result":{"a":""}}'
    line = line.replace('""', f'"{"x" * (size - len(line))}"')
    async with says(tmp_path, line, SHORT) as (read, _), asyncio.timeout(20):
        told = (await read.receive()).message
        assert told.id == 7
        assert isinstance(told, mcp_types.JSONRPCError) is (size > MOST_BYTES)
        assert (await read.receive()).message.method == "notifications/tools/list_changed"
