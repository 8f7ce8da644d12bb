"""Time limits of one call, and the wait that ends when one of them is reached.

A stream waits once a batch, so a wait must cost next to nothing: one timer
serves all of a call's waits and is moved only when it fires too early.
"""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from janus_inference.model import Timeouts

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Time limits of the server, in seconds, where a prompt says nothing."""

    connect: float = 5.0
    first_event: float = 60.0
    idle: float = 30.0
    total: float = 600.0

    def of(self, asked: Timeouts) -> "TimeLimits":
        """These, with what a prompt asks for in their place."""
        given = {
            name: value
            for name in ("connect", "first_event", "idle", "total")
            if (value := getattr(asked, name)) is not None
        }
        return replace(self, **given) if given else self


class Limit(NamedTuple):
    """A point of the loop's clock, the leg that ends there, and the seconds that the leg was given."""

    until: float
    leg: str
    seconds: float


class LimitReached(Exception):
    """A wait ran into its limit."""

    def __init__(self, limit: Limit) -> None:
        super().__init__(f"'{limit.leg}' took longer than {limit.seconds:g} s")
        self.limit = limit


class Legs:
    """The limits of one call, counted from now; ``remaining`` seconds are what its caller gives it."""

    def __init__(self, limits: TimeLimits, remaining: float | None) -> None:
        self.limits = limits
        self._clock = asyncio.get_running_loop().time
        now = self._clock()
        self._last = Limit(now + limits.total, "total", limits.total)
        if remaining is not None:
            self._last = min(self._last, Limit(now + remaining, "call", remaining))

    @property
    def whole(self) -> Limit:
        """The limit of the whole call."""
        return self._last

    @property
    def remaining(self) -> float:
        """Seconds that are left to the whole call."""
        return max(0.0, self._last.until - self._clock())

    def first_event(self) -> Limit:
        """For an attempt that begins now."""
        return min(Limit(self._clock() + self.limits.first_event, "first_event", self.limits.first_event), self._last)

    def idle(self) -> Limit:
        """For the next event of a stream that spoke just now."""
        return min(Limit(self._clock() + self.limits.idle, "idle", self.limits.idle), self._last)


class Waits:
    """Waits of one call, one at a time, each under a limit."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[Any] | None = None
        self._until = 0.0
        self._fired = False

    async def within(self, limit: Limit, wait: Awaitable[_Value]) -> _Value:
        """What is awaited. Raises LimitReached once the limit is, after the wait has been cancelled."""
        task = asyncio.current_task()
        assert task is not None
        cancelled_before = task.cancelling()
        self._task, self._until = task, limit.until
        if self._timer is None:
            self._timer = self._loop.call_at(limit.until, self._look)
        elif self._timer.when() > limit.until:
            self._timer.cancel()
            self._timer = self._loop.call_at(limit.until, self._look)
        try:
            return await wait
        except asyncio.CancelledError:
            if self._fired:
                self._fired = False
                if task.uncancel() <= cancelled_before:
                    raise LimitReached(limit) from None
            raise
        finally:
            self._task = None

    def interrupt(self) -> None:
        """End the wait at hand, if there is one, as if its limit were reached."""
        if self._task is not None:
            self._fired = True
            self._task.cancel()

    def close(self) -> None:
        """No more waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """The timer fired: for the wait at hand, too early for it, or for none."""
        self._timer = None
        if self._task is None:
            return
        if self._loop.time() < self._until:
            self._timer = self._loop.call_at(self._until, self._look)
            return
        self._fired = True
        self._task.cancel()
