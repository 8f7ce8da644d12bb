"""What a run may use, what it has used, and when that is said."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_kit.errors import FailedPrecondition, ResourceExhausted
from janus_orchestration.budgets import limits, refusal, total, used, warnings
from janus_orchestration.model import Budgets, Cursor, Step, StepKind, Usage

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def step(index: int, kind: StepKind = StepKind.MODEL_CALL, usage: Usage | None = None) -> Step:
    return Step(index, kind, 1, Cursor(), NOW, usage=usage, summary="some/model")


def calls(count: int) -> list[Step]:
    return [step(index) for index in range(1, count + 1)]


def test_what_nobody_limits_has_the_servers_limits() -> None:
    assert limits(None, Budgets()) == {"model_steps": 16, "tool_calls": 64}


def test_a_run_may_only_tighten_what_its_agent_allows() -> None:
    agent = Budgets(max_model_steps=100, max_tokens=500)
    assert limits(agent, Budgets(max_model_steps=200, max_tokens=50)) == {
        "model_steps": 100,
        "tool_calls": 64,
        "tokens": 50,
    }


def test_the_last_step_that_is_allowed_may_be_done() -> None:
    most = limits(Budgets(max_model_steps=2))
    assert refusal(calls(2), most) is None
    refused = refusal(calls(3), most)
    assert isinstance(refused, ResourceExhausted)
    assert refused.metadata == {"budget": "model_steps", "limit": "2"}


@pytest.mark.parametrize(("spent", "is_refused"), [(9, False), (10, True), (11, True)])
def test_tokens_that_are_used_up_allow_no_more(spent: int, is_refused: bool) -> None:
    steps = [step(1, usage=Usage(input_uncached=spent - 1, output=1))]
    assert (refusal(steps, limits(Budgets(max_tokens=10))) is not None) == is_refused


def test_a_budget_of_cost_cannot_be_kept_without_a_price() -> None:
    most = limits(Budgets(max_cost_micro_usd=10))
    assert refusal([step(1, usage=Usage(output=1, cost_micro_usd=9))], most) is None
    refused = refusal([step(1, usage=Usage(output=1))], most)
    assert isinstance(refused, FailedPrecondition)
    assert refused.reason == "PRICE_UNKNOWN"


def test_a_sum_is_an_estimate_and_without_a_cost_when_a_part_is() -> None:
    known = Usage(input_uncached=1, output=2, cost_micro_usd=3, price_version="v1", source=1)
    assert total([step(1, usage=known), step(2), step(3, usage=known)]) == Usage(
        input_uncached=2, output=4, cost_micro_usd=6, price_version="v1", source=1
    )
    mixed = total([step(1, usage=known), step(2, usage=Usage(output=1, source=2))])
    assert mixed == Usage(input_uncached=1, output=3, source=2)
    assert total([step(1)]) is None


@given(st.integers(1, 40), st.integers(1, 40))
def test_every_budget_warns_once_and_before_it_is_passed(limit: int, count: int) -> None:
    most = {"model_steps": limit}
    told = [warning for place in range(count) for warning in warnings(used(calls(place)), used(calls(place + 1)), most)]
    assert len(told) == (count >= 0.8 * limit)
    assert all(0.8 * limit <= warning.used <= limit for warning in told)
