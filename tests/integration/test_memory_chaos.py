"""A small run of `make chaos-memory`: each part dies once."""

from __future__ import annotations

from tests.chaos.memory import chaos
from tests.conftest import StackThread


async def test_nothing_acknowledged_is_lost_and_nothing_removed_returns(own_stack: StackThread) -> None:
    kills = ["memory 1", "postgres", "redis", "chroma"]
    report = await chaos(own_stack, seed=4, sequences=8, kills=kills, clients=4)
    assert report.violations == [], report
    assert report.kills.total() == len(kills), report
    assert min(report.acknowledged.total(), report.kept, report.gone, report.reads) > 10, report
