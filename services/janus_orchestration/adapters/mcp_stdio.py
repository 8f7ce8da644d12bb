"""A program that speaks MCP over stdin and stdout.

The package's own transport reads lines of any length, and leaves the program
behind when its task is cancelled twice. Here a line is bounded, and whatever
happens, the program and what it has started are gone in the end. A response
that is too long is passed over and answers its request with an error.
"""

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from subprocess import DEVNULL, PIPE
from typing import Any, NamedTuple

import anyio
import mcp_types
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage

from janus_kit.settings import MiB
from janus_kit.telemetry.logging import get_logger
from janus_orchestration.adapters.mcp_ended import Ended

_log = get_logger(__name__)

# For each way of asking the program to end: a closed stdin, SIGTERM, SIGKILL.
_GRACE_S = 1.0
_POLL_S = 0.01
# Longest wait for the program to take a message; one that does not read is broken.
_WRITE_S = 10.0
# A line that is longer has no end.
_MOST_SKIPPED = 256 * MiB
_EDGE = 1_024
# The id of a response is beside its result, which is what is long: before it or after it.
_ID = rb'"id"\s*:\s*(?P<id>\d{1,18}|"[\w.:-]{1,128}")'
_VERSION = rb'"jsonrpc"\s*:\s*"2.0"'
_WORD = rb'"(?:result|error)"\s*:'
_STARTS_WITH_ID = re.compile(rb"\s*\{\s*(?:%b\s*,\s*)?%b\s*,\s*(?:%b\s*,\s*)?%b" % (_VERSION, _ID, _VERSION, _WORD))
_STARTS_WITH_RESULT = re.compile(rb"\s*\{\s*(?:%b\s*,\s*)?%b" % (_VERSION, _WORD))
_ENDS_WITH_ID = re.compile(rb",\s*(?:%b\s*,\s*)?%b\s*(?:,\s*%b\s*)?\}\s*\Z" % (_VERSION, _ID, _VERSION))
# So that telling it something, as that a call is cancelled, waits for nothing.
_WAITING_MESSAGES = 64

Read = MemoryObjectReceiveStream[SessionMessage | Exception]
Write = MemoryObjectSendStream[SessionMessage]


@asynccontextmanager
async def program(
    command: Sequence[str],
    *,
    name: str,
    env: Mapping[str, str],
    cwd: str | None,
    stderr: bool,
    most_bytes: int,
    ended: Ended,
) -> AsyncIterator[tuple[Read, Write]]:
    """Run it; ``ended`` is set once nothing more will be heard of it. Raises OSError."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=PIPE,
            stdout=PIPE,
            stderr=None if stderr else DEVNULL,
            env=get_default_environment() | dict(env),
            cwd=cwd,
            limit=most_bytes,
            # A group of its own, so that a signal reaches all of it, and Ctrl-C at Janus none.
            start_new_session=True,
        )
    except OSError as error:
        ended.why = f"its program cannot be started: {error.strerror}"
        raise
    heard, read = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    write, to_say = anyio.create_memory_object_stream[SessionMessage](_WAITING_MESSAGES)
    pumps = [
        asyncio.create_task(_listen(process, heard, name, ended), name=f"mcp-stdout-{name}"),
        asyncio.create_task(_speak(process, to_say, ended), name=f"mcp-stdin-{name}"),
    ]
    try:
        yield read, write
    finally:
        had_ended = ended.is_set()
        for pump in pumps:
            pump.cancel()
        try:
            await asyncio.gather(*pumps, return_exceptions=True)
            if await _ask_to_end(process) and had_ended and not ended.why:
                ended.why = _how_it_ended(process, stderr)
        finally:
            # Without a wait, since this may be all that a second cancel leaves time for.
            _signal(process, signal.SIGKILL)
            for stream in (heard, read, write, to_say):
                stream.close()
            _let_go(process)


async def _listen(
    process: asyncio.subprocess.Process,
    heard: MemoryObjectSendStream[SessionMessage | Exception],
    name: str,
    ended: Ended,
) -> None:
    assert process.stdout is not None
    was_garbage = False
    try:
        while line := await _line(process.stdout):
            if isinstance(line, _TooLong):
                _log.warning("mcp_message_too_long", server=name)
                refused = line.refused()
                if refused is None:
                    # Who waits for it, if anybody does, cannot be told.
                    ended.why = "it wrote a message that is too long"
                    break
                await heard.send(SessionMessage(refused))
                continue
            try:
                message = mcp_types.jsonrpc_message_adapter.validate_json(line, by_name=False)
            except ValueError:
                # Words that were meant for a person, most often. The next line may be a message again.
                if not was_garbage and line.strip():
                    was_garbage = True
                    _log.warning("mcp_server_wrote_no_message", server=name)
                continue
            await heard.send(SessionMessage(message))
    except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass
    finally:
        ended.set()
        heard.close()


class _TooLong(NamedTuple):
    """How a line begins and ends of which the rest was passed over."""

    head: bytes
    tail: bytes

    def refused(self) -> mcp_types.JSONRPCError | None:
        """What answers the request that it responds to; None for what is no response."""
        found = _STARTS_WITH_ID.match(self.head)
        if found is None and _STARTS_WITH_RESULT.match(self.head):
            found = _ENDS_WITH_ID.search(self.tail)
        if found is None:
            return None
        error = mcp_types.ErrorData(code=mcp_types.PARSE_ERROR, message="the response is too large")
        return mcp_types.JSONRPCError(jsonrpc="2.0", id=json.loads(found["id"]), error=error)


async def _line(stdout: asyncio.StreamReader) -> bytes | _TooLong:
    """The next line; empty at the end."""
    head, tail, skipped = b"", b"", 0
    while skipped < _MOST_SKIPPED:
        try:
            read = await stdout.readuntil()
        except asyncio.IncompleteReadError as end:
            return b"" if skipped else end.partial
        except asyncio.LimitOverrunError as over:
            read = await stdout.readexactly(over.consumed)
        else:
            if not skipped:
                return read
        head = head or read[:_EDGE]
        tail = (tail + read[-_EDGE:])[-_EDGE:]
        skipped += len(read)
        if read.endswith(b"\n"):
            break
    return _TooLong(head, tail)


async def _speak(
    process: asyncio.subprocess.Process, to_say: MemoryObjectReceiveStream[SessionMessage], ended: Ended
) -> None:
    assert process.stdin is not None
    try:
        async for said in to_say:
            process.stdin.write(said.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
            async with asyncio.timeout(_WRITE_S):
                await process.stdin.drain()
    except TimeoutError:
        ended.why = "its program does not read what it is told"
        ended.set()
    except OSError:
        ended.set()
    finally:
        to_say.close()


async def _ask_to_end(process: asyncio.subprocess.Process) -> bool:
    """Whether it ended without a signal of ours."""
    assert process.stdin is not None
    process.stdin.close()
    for number in (signal.SIGTERM, signal.SIGKILL, None):
        # Not wait(): that waits for whoever else holds its pipes as well.
        with suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_S):
                while process.returncode is None:  # noqa: ASYNC110 - what is waited for is not of this loop
                    await asyncio.sleep(_POLL_S)
                return number is signal.SIGTERM
        if number is not None:
            _signal(process, number)
    return False


def _how_it_ended(process: asyncio.subprocess.Process, stderr: bool) -> str:
    code = process.returncode
    assert code is not None
    how = f"ended with exit code {code}" if code >= 0 else f"was ended by {_signal_name(-code)}"
    where = "what it wrote to stderr is in Janus's" if stderr else "`stderr: true` shows what it writes to stderr"
    return f"its program {how}; {where}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """To the program and all that it has started, also when it has ended itself."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _let_go(process: asyncio.subprocess.Process) -> None:
    """Close our ends of its pipes, which somebody who left its group may still hold."""
    transport: Any = process._transport  # type: ignore[attr-defined]
    with suppress(ProcessLookupError, PermissionError):
        transport.close()
