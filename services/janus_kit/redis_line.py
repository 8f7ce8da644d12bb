"""A Redis client whose commands share one connection.

Redis answers the commands of a connection in their order, and one at a time whatever their number of connections.
So what many tasks ask goes over one, one after the other without waiting: what is asked at one moment is one write,
and no command pays for a trip through the pool. Only commands that block on the server, and transactions, take
connections of their own.

A command whose caller has given up is answered all the same, and the answer dropped.
"""

import asyncio
import contextvars
import copy
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import hiredis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import ConnectionError as Lost
from redis.exceptions import InvalidResponse, ResponseError
from redis.exceptions import TimeoutError as TooLate

from janus_kit.waiting import within

_BLOCKING = frozenset(
    {
        "BLPOP",
        "BRPOP",
        "BLMOVE",
        "BRPOPLPUSH",
        "BLMPOP",
        "BZPOPMIN",
        "BZPOPMAX",
        "BZMPOP",
        "XREAD",
        "XREADGROUP",
        "WAIT",
        "WAITAOF",
    }
)
# What may be under way: a Redis that does not answer must not fill the memory.
_MOST_ASKED = 4_096
_MOST_UNWRITTEN_BYTES = 4 * 1024 * 1024
# A connection may have died while nobody used it; then its successor is asked, once, so soon.
_AGAIN_S = 0.01
_NO_MORE = object()


@dataclass(slots=True)
class _Asked:
    """Commands that were sent together."""

    count: int
    done: asyncio.Future[list[Any]]
    answers: list[Any] = field(default_factory=list)


class _Answers(asyncio.Protocol):
    """What comes over a connection, read in the place of redis-py's stream.

    ``take`` is called with each answer; ``lost`` fails with what ended the connection.
    """

    def __init__(self, connection: Any, take: Callable[[Any], None]) -> None:
        self._take = take
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse, replyError=connection._parser.parse_error, notEnoughData=_NO_MORE
        )
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        connection._writer.transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        if self.lost.done():
            return
        try:
            self._reader.feed(data)
            while (answer := self._reader.gets()) is not _NO_MORE:
                if isinstance(answer, Lost):
                    # It is starting, or has no room for us.
                    raise answer
                if not isinstance(answer, hiredis.PushNotification):
                    self._take(answer)
        except Exception as broken:  # noqa: BLE001 - nothing that comes after it can be read
            self.end(broken)

    def connection_lost(self, error: Exception | None) -> None:
        self.end(Lost(f"the connection was closed: {error or 'by the server'}"))

    def end(self, error: Exception) -> None:
        if not self.lost.done():
            self.lost.set_exception(error)


class Line:
    """One connection of a pool, and the commands on it. Takes it with the first command, and anew when it is lost."""

    def __init__(self, pool: BlockingConnectionPool) -> None:
        # The library's own types are not complete.
        self._pool: Any = pool
        self._asked: deque[_Asked] = deque()
        self._unsent: list[bytes] = []
        self._connection: Any = None
        self._serving: asyncio.Task[None] | None = None
        self._is_closed = False
        self._has_moved = asyncio.Event()
        self._answered = 0

    async def ask(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The answers; one that is a refusal is a ResponseError. Raises redis' errors for what got none.

        What a lost connection left without answers is asked once more, so that it may be done twice.
        """
        packed = b"".join([_packed(command) for command in commands])
        try:
            return await self._answers(packed, len(commands))
        except Lost:
            await asyncio.sleep(_AGAIN_S * random.random())  # noqa: S311 - not a secret
            return await self._answers(packed, len(commands))

    async def close(self) -> None:
        """End what is under way, and take no more."""
        self._is_closed = True
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
        self._fail(Lost("the client is closed"))

    async def _answers(self, packed: bytes, count: int) -> list[Any]:
        if self._is_full():
            await self._wait_for_room()
        if self._is_closed:
            raise Lost("the client is closed")
        asked = _Asked(count, asyncio.get_running_loop().create_future())
        self._asked.append(asked)
        self._unsent.append(packed)
        if self._serving is None:
            # Whoever asks first has nothing to do with what others ask.
            serving = self._serve()
            self._serving = asyncio.create_task(serving, name="redis-line", context=contextvars.Context())
        elif len(self._unsent) == 1:
            # What others ask at this moment goes along.
            asyncio.get_running_loop().call_soon(self._write, context=contextvars.Context())
        return await asked.done

    def _is_full(self) -> bool:
        if len(self._asked) >= _MOST_ASKED:
            return True
        writer = self._connection and self._connection._writer
        return bool(writer) and writer.transport.get_write_buffer_size() > _MOST_UNWRITTEN_BYTES

    async def _wait_for_room(self) -> None:
        try:
            async with within(self._pool.timeout):
                while self._is_full():
                    self._has_moved.clear()
                    await self._has_moved.wait()
        except TimeoutError:
            raise Lost("too many commands wait for their answers") from None

    def _write(self) -> None:
        """Send what was asked. Nothing waits for the socket to take it: no answer comes before it does."""
        if self._connection is not None and self._unsent:
            self._connection._writer.write(b"".join(self._unsent))
            self._unsent.clear()

    async def _serve(self) -> None:
        """Have the answers read, as long as the connection lasts."""
        error: Exception = Lost("the client is closed")
        connection: Any = None
        answers: _Answers | None = None
        try:
            connection = await self._pool.get_connection()
            answers = _Answers(connection, self._take)
            self._connection = connection
            self._write()
            await self._until_lost(answers, connection.socket_timeout)
        except Exception as met:  # noqa: BLE001 - whatever it was, those who wait are told
            error = met
        finally:
            self._serving = self._connection = None
            self._fail(error)
            if answers is not None:
                answers.lost.cancel()
            if connection is not None:
                await connection.disconnect(nowait=True)
                await self._pool.release(connection)

    async def _until_lost(self, answers: _Answers, most_s: float) -> None:
        """Raise what ends the connection, be it that the next answer takes longer than so many seconds."""
        still = 0
        while True:
            answered = self._answered
            await asyncio.wait([answers.lost], timeout=most_s / 2)
            if answers.lost.done():
                await answers.lost
            still = still + 1 if self._asked and self._answered == answered else 0
            # It was asked within the first of the halves, or before.
            if still == 3:
                raise TooLate("an answer takes too long")

    def _take(self, answer: Any) -> None:
        """One answer, to who asked first."""
        self._answered += 1
        asked = self._asked[0]
        asked.answers.append(answer)
        if len(asked.answers) == asked.count:
            self._asked.popleft()
            self._has_moved.set()
            if not asked.done.done():
                asked.done.set_result(asked.answers)

    def _fail(self, error: Exception) -> None:
        asked = list(self._asked)
        self._asked.clear()
        self._unsent.clear()
        self._has_moved.set()
        for each in asked:
            if not each.done.done():
                # One of its own for each caller, who adds where it was raised.
                each.done.set_exception(copy.copy(error))


class LineClient(Redis):
    """A client of a line, with redis-py's commands."""

    def __init__(self, pool: BlockingConnectionPool) -> None:
        super().__init__(connection_pool=pool)
        self.line = Line(pool)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        if args[0] in _BLOCKING:
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        (answer,) = await self.line.ask([args])
        read: Any = _Read(answer)
        return await self.parse_response(read, args[0], **options)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> "LinePipeline":
        return LinePipeline(self.line, self.connection_pool, self.response_callbacks, transaction, shard_hint)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await self.line.close()
        await super().aclose(close_connection_pool)


class LinePipeline(Pipeline):
    """Commands that are sent together, over the line but for transactions and scripts."""

    def __init__(self, line: Line, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._line = line

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        if self.is_transaction or self.explicit_transaction or self.scripts or self.connection:
            found: list[Any] = await super().execute(raise_on_error)
            return found
        commands = self.command_stack
        await self.reset()  # type: ignore[no-untyped-call]
        if not commands:
            return []
        answers = await self._line.ask([args for args, _ in commands])
        results = []
        for (args, options), answer in zip(commands, answers, strict=True):
            read: Any = _Read(answer)
            try:
                results.append(await self.parse_response(read, args[0], **options))
            except ResponseError as refused:
                results.append(refused)
        if raise_on_error:
            self.raise_first_error(commands, results)
        return results


class _Read:
    """An answer that was read, as clients parse it from a connection."""

    __slots__ = ("_answer",)

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    async def read_response(self, disable_decoding: bool = False) -> Any:
        if isinstance(self._answer, ResponseError):
            raise self._answer
        return self._answer


_pack: Callable[[tuple[Any, ...]], bytes] = hiredis.pack_command


def _packed(command: Sequence[Any]) -> bytes:
    """A command as the protocol has it; a name of two words is two of its arguments."""
    return _pack((*command[0].split(" "), *command[1:]))
