"""A small run of `make chaos-runs`: everything dies or sleeps once."""

from __future__ import annotations

from tests.chaos.parts import EVERYTHING
from tests.chaos.runs import PARTS, chaos
from tests.conftest import StackThread


async def test_no_run_is_lost_doubled_or_contradicted(own_stack: StackThread) -> None:
    faults = [*PARTS, EVERYTHING]
    report = await chaos(own_stack, seed=4, runs=20, faults=faults, clients=6)
    assert report.violations == [], report
    assert report.ends.total() == 20, report
    assert min(report.faults.total(), report.taken, report.calls.total(), report.looks) > 0, report
