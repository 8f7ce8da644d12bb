"""The model's part of a turn: one call, forwarded as it speaks."""

import asyncio
from collections.abc import AsyncIterator

from janus_kit.clock import Clock
from janus_kit.errors import Unavailable
from janus_orchestration.events import ModelSaid
from janus_orchestration.interrupt import Interrupt
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


class ModelFailed(Exception):
    """The model's stream ended in a failure, which callers get as it is."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class ModelCall:
    """The calls of a run, one at a time.

    A service that is away before it said anything is waited for, for ``wait_s``
    seconds.
    """

    def __init__(self, journal: Journal, model: Model, interrupt: Interrupt, clock: Clock, *, wait_s: float) -> None:
        self._journal = journal
        self._model = model
        self._interrupt = interrupt
        self._clock = clock
        self._wait_s = wait_s
        self._has_heard = False
        # What the latest call used, as far as the service said: one that is cut has cost it.
        self.usage: Usage | None = None

    async def answer(self, prompt: Prompt, step: Step, starting: Changes | None) -> Answer:
        """The whole answer. ``starting`` is committed before anything of it is said; None when it is already.

        Raises ModelFailed, or what the service refused the call with.
        """
        self._has_heard, self.usage = False, None
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
            except Unavailable as error:
                is_late = self._clock.monotonic() >= give_up
                if self._has_heard or is_late or error.metadata.get("part") != "inference":
                    raise
            async with self._interrupt.may_cut():
                await asyncio.sleep(_RETRY_S[min(attempt, len(_RETRY_S) - 1)])
            attempt += 1

    async def _listen(self, events: AsyncIterator[ModelEvent], step: Step) -> Answer:
        async for event in events:
            self._has_heard = True
            if event.usage is not None:
                self.usage = event.usage
            is_delta = event.kind is ModelEventKind.DELTA
            await self._journal.say(ModelSaid(step.index, event.wire), keep=not is_delta)
            if event.answer is not None:
                return event.answer
            if event.failure is not None:
                raise ModelFailed(event.failure)
        raise Unavailable("inference", "the model's stream ended without saying how it ended")
