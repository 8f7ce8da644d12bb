"""The model's part of a turn: one call, forwarded as it speaks."""

import asyncio
from collections.abc import AsyncIterator

from janus_kit.clock import Clock
from janus_kit.errors import Cancelled, JanusError, Unavailable
from janus_orchestration.budgets import of_attempts
from janus_orchestration.events import ModelSaid
from janus_orchestration.interrupt import Interrupt, Leaving
from janus_orchestration.journal import Changes, Journal
from janus_orchestration.model import (
    Answer,
    Failure,
    ModelEvent,
    ModelEventKind,
    Prompt,
    Step,
    Usage,
)
from janus_orchestration.ports import Model

_RETRY_S = (0.05, 0.1, 0.2, 0.5)
# Reasons of the service, and of no provider: it stops, or lacks what it needs. It can be asked again.
_OF_THE_SERVICE = {
    "DRAINING": "the server that worked on the answer stops",
    "DEPENDENCY_UNAVAILABLE": "something that the inference service needs is away",
}


class ModelFailed(Exception):
    """The model's stream ended in a failure, which callers get as it is."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class ModelLost(Exception):
    """The service, or what it needs, was gone in the midst of an answer. ``error`` says how it went."""

    def __init__(self, error: JanusError) -> None:
        super().__init__(error.reason)
        self.error = error


class ModelCall:
    """The calls of a run, one at a time.

    A service that is away before it said anything, or what it needs, is waited for,
    for ``wait_s`` seconds; by a process that stops, not at all.
    """

    def __init__(self, journal: Journal, model: Model, interrupt: Interrupt, clock: Clock, *, wait_s: float) -> None:
        self._journal = journal
        self._model = model
        self._interrupt = interrupt
        self._clock = clock
        self._wait_s = wait_s
        self._has_heard = False
        self._lost: Usage | None = None
        # What the latest call used, as far as the service said: one that is cut has cost it.
        self.usage: Usage | None = None

    async def answer(self, prompt: Prompt, step: Step, starting: Changes | None, *, after_loss: bool = False) -> Answer:
        """The whole answer. ``starting`` is committed before anything of it is said; None when it is already.

        ``after_loss``: the same call as before, whose answer was lost; what that used stays used.

        Raises ModelFailed, ModelLost, Leaving, or what the service refused the call with.
        """
        self._has_heard = False
        self._lost = self.usage = self.usage if after_loss else None
        give_up = self._clock.monotonic() + self._wait_s
        to_commit = starting
        attempt = 0
        while True:
            self._interrupt.check()
            try:
                async with self._model.stream(prompt) as events:
                    if to_commit is not None:
                        # While the request is on its way.
                        await self._journal.commit(to_commit)
                        to_commit = None
                    async with self._interrupt.may_cut():
                        return await self._listen(events, step)
            except (Unavailable, Cancelled) as error:
                if not _is_lost(error):
                    raise
                if self._interrupt.is_leaving:
                    raise Leaving from error
                if self._has_heard:
                    raise ModelLost(error) from error
                if self._clock.monotonic() >= give_up:
                    raise
            async with self._interrupt.may_cut():
                await asyncio.sleep(_RETRY_S[min(attempt, len(_RETRY_S) - 1)])
            attempt += 1

    async def _listen(self, events: AsyncIterator[ModelEvent], step: Step) -> Answer:
        async for event in events:
            self._has_heard = True
            if event.usage is not None:
                self.usage = of_attempts(self._lost, event.usage)
            if event.failure is not None and (why := _OF_THE_SERVICE.get(event.failure.reason)):
                raise Unavailable("inference", why, reason=event.failure.reason)
            is_delta = event.kind is ModelEventKind.DELTA
            await self._journal.say(ModelSaid(step.index, event.wire), keep=not is_delta)
            if event.answer is not None:
                return event.answer
            if event.failure is not None:
                raise ModelFailed(event.failure)
        raise Unavailable("inference", "the model's stream ended without saying how it ended")


def _is_lost(error: JanusError) -> bool:
    """Whether it is of the service and what it needs, and not of what it asks; its end cancels what is under way."""
    return isinstance(error, Cancelled) or error.reason in _OF_THE_SERVICE
