"""Small requests that wait anyway travel together.

A request whose lane is idle leaves at once, alone. While one is under way,
further ones of the same lane wait, and leave as one when it ends, or when
they have waited long enough: a provider that is stuck must not stop a lane.
"""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from janus_inference.accounting import apportioned
from janus_inference.embedding_batches import tokens_of
from janus_inference.ports import Vectors
from janus_inference.provider_errors import is_unusable
from janus_kit.errors import JanusError

MOST_JOINED_INPUTS = 64
"""A request with more texts is large enough by itself."""
_MOST_WAITING = 256
_MOST_AT_ONCE = 4
_PATIENCE_S = 0.2
# Refusals that one text may have earned for all that travelled with it.
_ABOUT_INPUTS = frozenset({"PROVIDER_REJECTED_REQUEST", "CONTEXT_TOO_LONG"})

_Key = TypeVar("_Key", bound=Hashable)


@dataclass(eq=False)
class _Waiter:
    inputs: Sequence[str]
    until: float
    future: "asyncio.Future[Vectors]"
    tokens: int
    context: contextvars.Context


@dataclass(eq=False)
class _Lane:
    most_inputs: int
    most_tokens: int
    waiting: list[_Waiter] = field(default_factory=list)
    under_way: dict["asyncio.Task[None]", list[_Waiter]] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None


class Lanes(Generic[_Key]):
    """Joins requests of the same key.

    ``ask`` makes one upstream request: a key, texts, and the time of the loop's
    clock until which it may take. Its errors are JanusErrors.
    """

    def __init__(self, ask: Callable[[_Key, Sequence[str], float], Awaitable[Vectors]]) -> None:
        self._ask = ask
        self._lanes: dict[_Key, _Lane] = {}

    async def vectors(
        self, key: _Key, inputs: Sequence[str], until: float, *, most_inputs: int, most_tokens: int
    ) -> Vectors:
        """The vectors of these texts, and their share of the usage. Raises JanusError."""
        lane = self._lanes.setdefault(key, _Lane(most_inputs, most_tokens))
        if len(lane.waiting) >= _MOST_WAITING:
            return await self._ask(key, inputs, until)
        loop = asyncio.get_running_loop()
        waiter = _Waiter(inputs, until, loop.create_future(), tokens_of(inputs), contextvars.copy_context())
        lane.waiting.append(waiter)
        if not lane.under_way:
            self._leave(key, lane)
        else:
            self._be_patient(key, lane)
        try:
            return await waiter.future
        finally:
            self._gone(lane, waiter)

    async def close(self) -> None:
        """End what is under way, and wait for its end."""
        tasks = [task for lane in self._lanes.values() for task in lane.under_way]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _leave(self, key: _Key, lane: _Lane) -> None:
        """Send as many of those that wait as fit into one request."""
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
        group: list[_Waiter] = []
        count = tokens = 0
        while lane.waiting:
            waiter = lane.waiting[0]
            count, tokens = count + len(waiter.inputs), tokens + waiter.tokens
            if group and (count > lane.most_inputs or tokens > lane.most_tokens):
                break
            group.append(lane.waiting.pop(0))
        if not group:
            return
        task = asyncio.get_running_loop().create_task(
            self._run(key, group), name="embedding-request", context=group[0].context
        )
        lane.under_way[task] = group
        task.add_done_callback(lambda done: self._ended(key, lane, done))
        self._be_patient(key, lane)

    def _be_patient(self, key: _Key, lane: _Lane) -> None:
        if lane.waiting and lane.timer is None and len(lane.under_way) < _MOST_AT_ONCE:
            lane.timer = asyncio.get_running_loop().call_later(_PATIENCE_S, self._tired, key, lane)

    def _tired(self, key: _Key, lane: _Lane) -> None:
        lane.timer = None
        self._leave(key, lane)

    def _ended(self, key: _Key, lane: _Lane, task: "asyncio.Task[None]") -> None:
        group = lane.under_way.pop(task)
        if task.cancelled():
            for waiter in group:
                waiter.future.cancel()
        if lane.waiting:
            self._leave(key, lane)
        elif not lane.under_way and self._lanes.get(key) is lane:
            del self._lanes[key]

    async def _run(self, key: _Key, group: list[_Waiter]) -> None:
        """One upstream request for all of a group; each alone where what one wants is refused."""
        inputs = [text for waiter in group for text in waiter.inputs]
        try:
            made = await self._ask(key, inputs, max(waiter.until for waiter in group))
        except JanusError as error:
            if len(group) == 1 or not (error.reason in _ABOUT_INPUTS or is_unusable(error)):
                _fail(group, error)
                return
            for waiter in group:
                if not waiter.future.done():
                    await self._run(key, [waiter])
        except Exception as error:  # noqa: BLE001 - a bug is told to those who wait, not to the loop
            _fail(group, error)
        else:
            _deliver(group, made)

    def _gone(self, lane: _Lane, waiter: _Waiter) -> None:
        """Nobody waits for this one any more: stop the request that nobody at all waits for."""
        if waiter in lane.waiting:
            lane.waiting.remove(waiter)
        for task, group in lane.under_way.items():
            if waiter in group and all(each.future.done() for each in group):
                task.cancel()


def _deliver(group: list[_Waiter], made: Vectors) -> None:
    shares = apportioned(made.usage, [waiter.tokens for waiter in group])
    at = 0
    for waiter, usage in zip(group, shares, strict=True):
        mine = made.values[at : at + len(waiter.inputs)]
        at += len(waiter.inputs)
        if not waiter.future.done():
            waiter.future.set_result(Vectors(mine, usage))


def _fail(group: list[_Waiter], error: Exception) -> None:
    for waiter in group:
        if not waiter.future.done():
            waiter.future.set_exception(error)
