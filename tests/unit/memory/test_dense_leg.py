"""The dense leg of recall when its index hangs."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from janus_kit.clock import SystemClock
from janus_memory import recall
from janus_memory.model import Backend, HardFilter, RecallQuery, Scope, Space, Weights
from janus_memory.parts import Parts
from janus_memory.recall import Recall

WHEN = datetime(2024, 1, 1, tzinfo=UTC)
QUERY = RecallQuery("x", 10, HardFilter(Scope(), (), WHEN, None, WHEN), Weights(), embedding=(1.0,))


class HangingIndex:
    """Answers nobody, and counts who asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def search(self, *_: Any) -> Any:
        self.asked += 1
        await asyncio.Event().wait()


async def asked_by_two(backend: Backend, remaining_s: float) -> int:
    """How often the index was asked by two recalls, both of which were degraded."""
    index: Any = HangingIndex()
    unused: Any = None
    space = Space("s", 1, "i", backend, "m", 1, Weights(), "", 1, WHEN)
    leg = Recall(unused, {backend: index}, unused, unused, Parts(), SystemClock(), 60, lambda: remaining_s)
    for _ in range(2):
        found = await leg._dense("t", space, QUERY, [])
        assert (found.found, found.degraded) == ({}, (backend.name.lower(),))
    return int(index.asked)


async def test_an_index_that_hangs_is_left_alone_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "_PATIENCE_S", 0.01)
    monkeypatch.setattr(recall, "_REST_S", 3600.0)
    assert await asked_by_two(Backend.CHROMA, 0.1) == 1


async def test_a_caller_in_a_hurry_proves_nothing_about_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "_PATIENCE_S", 3600.0)
    assert await asked_by_two(Backend.CHROMA, 0.1) == 2


async def test_a_slow_space_in_postgres_keeps_nobody_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "_PATIENCE_S", 0.01)
    assert await asked_by_two(Backend.PGVECTOR, 0.1) == 2
