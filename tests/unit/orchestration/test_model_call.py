"""How long a model call waits for the inference service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from janus_kit.errors import Unavailable
from janus_orchestration import model_call
from janus_orchestration.interrupt import Interrupt
from janus_orchestration.model import Answer, ModelEvent, ModelEventKind, Prompt, Usage
from janus_orchestration.model_call import ModelCall
from janus_orchestration.settings import OrchestrationSettings

ANSWER = Answer(None, 1, Usage())


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return self.time


class Restarting:
    """An inference service that is away until ``back_at``; each try takes a second."""

    def __init__(self, clock: Clock, back_at: float) -> None:
        self._clock = clock
        self._back_at = back_at

    @asynccontextmanager
    async def stream(self, prompt: Prompt) -> AsyncIterator[AsyncIterator[ModelEvent]]:
        self._clock.time += 1
        if self._clock.time < self._back_at:
            raise Unavailable("inference")
        yield self._events()

    async def _events(self) -> AsyncIterator[ModelEvent]:
        yield ModelEvent(ModelEventKind.FINISHED, b"", ANSWER)


class Journal:
    async def say(self, event: object, *, keep: bool) -> None: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(model_call, "_RETRY_S", (0,))
    return Clock()


async def answered(clock: Clock, back_at: float) -> Answer:
    model: Any = Restarting(clock, back_at)
    journal: Any = Journal()
    step: Any = SimpleNamespace(index=1)
    call = ModelCall(journal, model, Interrupt(), clock, wait_s=OrchestrationSettings().inference_wait_s)
    return await call.answer(Prompt("", "", ()), step, None)


async def test_a_service_that_is_started_again_in_twice_the_time_that_this_takes_is_waited_for(clock: Clock) -> None:
    assert await answered(clock, back_at=12) is ANSWER


async def test_a_service_that_stays_away_is_given_up(clock: Clock) -> None:
    with pytest.raises(Unavailable):
        await answered(clock, back_at=1_000)
    assert clock.time == 15
