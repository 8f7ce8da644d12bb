"""How often the summariser looks for threads that have grown."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from janus_kit.errors import Unavailable
from janus_memory import summarising
from janus_memory.settings import MemorySettings
from janus_memory.summarising import Pace, Summariser


def test_it_looks_as_often_as_it_is_told_to() -> None:
    pace = Pace(5.0)
    for _ in range(100):
        pace.looked(0.2)
    assert pace.pause_s == 5.0


def test_a_look_that_took_long_on_a_busy_machine_delays_no_summary() -> None:
    pace = Pace(0.1)
    for seconds in (30.0, 12.0, 0.001, *[30.0] * 7):
        pace.looked(seconds)
        assert pace.pause_s == 0.1


def test_looks_that_always_take_long_are_a_twentieth_of_the_time() -> None:
    pace = Pace(5.0)
    for _ in range(8):
        pace.looked(2.0)
    assert pace.pause_s == 40.0


def test_no_summary_waits_for_minutes() -> None:
    pace = Pace(5.0)
    for _ in range(8):
        pace.looked(30.0)
    assert pace.pause_s == 60.0
    assert Pace(300.0).pause_s == 300.0


@pytest.mark.parametrize("fails", [True, False])
async def test_a_summariser_looks_again_soon_after_a_long_outage_or_a_slow_answer(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, looks, enough = 0.0, 0, asyncio.Event()

    class Records:
        async def grown_threads(self, turns: int, limit: int) -> list[Any]:
            nonlocal now, looks
            now, looks = now + 600.0, looks + 1
            if looks == 3:
                enough.set()
            if fails:
                raise Unavailable("postgres", "postgres does not answer")
            return []

    monkeypatch.setattr(summarising, "time", SimpleNamespace(monotonic=lambda: now))
    records: Any = Records()
    worker = asyncio.create_task(Summariser(records, None, MemorySettings(summary_poll_s=0.01)).run())
    async with asyncio.timeout(10):
        await enough.wait()
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
