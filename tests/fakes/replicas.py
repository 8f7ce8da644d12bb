"""Replicas of inference as far as resuming goes: each with its own connections to one Redis."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime

from pydantic import SecretStr

from janus_inference.adapters.redis_replay import RedisReplay
from janus_inference.events import Event, Finished, FinishReason, Numbered, Started, TextDelta, Timings, Usage
from janus_inference.model import Caller
from janus_inference.ports import Pledge
from janus_inference.resuming import Resumables
from janus_inference.stored import ProtobufEvents
from janus_kit.redis import RedisClient, redis
from janus_kit.settings import RedisSettings

ANNA = Caller("anna", "a")
BOB = Caller("bob", "b")
PLEDGE = Pledge("anna", {}, datetime(2026, 1, 1, tzinfo=UTC), 10)


class Replica:
    """One process's worth of resuming."""

    def __init__(self, store: RedisReplay, client: RedisClient) -> None:
        self.store, self.client = store, client
        self.resumables = Resumables(store)

    def start(
        self, generation_id: str, speaker: "Speaker", *, linger_s: float = 30.0, caller: Caller = ANNA
    ) -> AsyncGenerator[Numbered, None]:
        return self.resumables.start(
            caller, generation_id, speaker.events(), linger_s, pledge=PLEDGE, spent=lambda: None
        )

    def follow(self, generation_id: str, after: int = 0, caller: Caller = ANNA) -> AsyncGenerator[Numbered, None]:
        return self.resumables.follow(caller, generation_id, after)


@asynccontextmanager
async def replica(
    url: str, *, keep_s: float = 60.0, name: str = "replica", pool_max: int = 200
) -> AsyncIterator[Replica]:
    async with AsyncExitStack() as stack:
        settings = RedisSettings(url=SecretStr(url), pool_max=pool_max)
        writer = await stack.enter_async_context(redis(settings, application=name))
        readers = await stack.enter_async_context(redis(settings, application=f"{name}-read"))
        made = Replica(RedisReplay(writer, ProtobufEvents(), keep_s=keep_s, readers=readers), writer)
        stack.push_async_callback(made.store.close)
        stack.push_async_callback(made.resumables.close)
        yield made


class Speaker:
    """A generation that says what a test tells it to, when it tells it to."""

    def __init__(self, *events: Event) -> None:
        self.began = asyncio.Event()
        self.closed = asyncio.Event()
        self._waiting: asyncio.Queue[Event] = asyncio.Queue()
        self.say(*events)

    def say(self, *events: Event) -> None:
        for event in events:
            self._waiting.put_nowait(event)

    def words(self, first: int, count: int) -> None:
        self.say(*(TextDelta(0, f"w{number} ") for number in range(first, first + count)))

    def finish(self) -> None:
        self.say(FINISHED)

    async def events(self) -> AsyncGenerator[Numbered, None]:
        self.began.set()
        sequence = 0
        try:
            while True:
                event = await self._waiting.get()
                sequence += 1
                yield Numbered(sequence, event)
                if isinstance(event, Finished):
                    return
        finally:
            self.closed.set()


STARTED = Started("gen", "upstream", "fake", 1)
FINISHED = Finished(FinishReason.STOP, "stop", Usage(3, 0, 0, 4), Timings(0.1, 0.2, 0.01))


def whole(words: int) -> list[Numbered]:
    """A generation with so many words."""
    said: list[Event] = [STARTED, *(TextDelta(0, f"w{number} ") for number in range(words)), FINISHED]
    return [Numbered(number, event) for number, event in enumerate(said, 1)]


def speaker_of(events: Sequence[Numbered]) -> Speaker:
    return Speaker(*(numbered.event for numbered in events))


async def read(stream: AsyncGenerator[Numbered, None], count: int | None = None) -> list[Numbered]:
    """So many events, or all; the stream is closed after them."""
    found: list[Numbered] = []
    try:
        async for numbered in stream:
            found.append(numbered)
            if len(found) == count:
                break
    finally:
        await stream.aclose()
    return found
