"""Circuit breakers and the retry budget, with a clock that the test turns."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_inference.breakers import BreakerRules, Breakers, BreakerState
from janus_inference.provider_errors import Refused, classify, unreachable
from janus_inference.retry_budget import RetryBudget

TARGET = "openai/gpt"
DOWN = unreachable("openai")


class Turned:
    """A clock."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)


def breakers(**rules: float) -> tuple[Breakers, Turned]:
    clock = Turned()
    return Breakers(clock, BreakerRules(**{"failures": 3, "open_s": 5, "open_most_s": 20, **rules})), clock


def broken(given: Breakers, times: int = 3) -> None:
    for _ in range(times):
        assert given.enter(TARGET)
        given.failed(TARGET, DOWN)


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    target, _ = breakers()
    broken(target, 2)
    target.succeeded(TARGET)
    broken(target, 2)
    assert target.state(TARGET) is BreakerState.CLOSED
    broken(target, 1)
    assert target.state(TARGET) is BreakerState.OPEN
    assert not target.enter(TARGET)
    assert target.enter("openai/other")
    assert target.why(TARGET) is DOWN
    assert target.wait(TARGET) == 5


def test_years_of_failures_leave_it_working() -> None:
    target, clock = breakers()
    broken(target)
    for _ in range(2000):
        clock.seconds += 20
        assert target.enter(TARGET)
        target.failed(TARGET, DOWN)
    clock.seconds += 20
    assert target.enter(TARGET)


def test_a_trial_is_over_when_an_answer_begins() -> None:
    target, clock = breakers()
    broken(target)
    clock.seconds += 5
    assert target.enter(TARGET)
    assert not target.enter(TARGET)
    target.spoke(TARGET)
    assert target.enter(TARGET)
    assert target.state(TARGET) is BreakerState.CLOSED
    target.failed(TARGET, DOWN)
    assert target.state(TARGET) is BreakerState.OPEN


def test_what_is_known_of_a_provider_can_be_forgotten() -> None:
    target, _ = breakers()
    broken(target)
    target.forget("other")
    assert target.state(TARGET) is BreakerState.OPEN
    target.forget("openai")
    assert target.state(TARGET) is BreakerState.CLOSED


def test_made_up_names_do_not_fill_the_memory() -> None:
    target, _ = breakers()
    for number in range(5000):
        target.failed(f"openai/{number}", DOWN)
    assert len(target._breakers) == 4096


def test_after_its_time_one_trial_at_a_time_decides() -> None:
    target, clock = breakers()
    broken(target)
    clock.seconds += 5
    assert target.state(TARGET) is BreakerState.HALF_OPEN
    assert target.enter(TARGET)
    assert not target.enter(TARGET)
    target.succeeded(TARGET)
    assert target.state(TARGET) is BreakerState.CLOSED
    assert target.enter(TARGET)
    assert target.enter(TARGET)


def test_a_failed_trial_opens_it_for_twice_as_long_up_to_a_bound() -> None:
    target, clock = breakers()
    broken(target)
    for wait in (10, 20, 20):
        clock.seconds += target.wait(TARGET)
        assert target.enter(TARGET)
        target.failed(TARGET, DOWN)
        assert target.wait(TARGET) == wait


def test_a_trial_whose_caller_left_lets_the_next_one_try() -> None:
    target, clock = breakers()
    broken(target)
    clock.seconds += 5
    assert target.enter(TARGET)
    target.left(TARGET)
    assert target.enter(TARGET)


def test_failures_of_calls_from_before_it_opened_change_nothing() -> None:
    target, _ = breakers()
    broken(target)
    target.failed(TARGET, DOWN)
    target.failed(TARGET, DOWN)
    assert target.wait(TARGET) == 5


def test_a_provider_that_asks_for_a_longer_pause_gets_it_within_bounds() -> None:
    for asked, wait in ((8, 8), (600, 20), (1, 5)):
        target, _ = breakers(failures=1)
        assert target.enter(TARGET)
        target.failed(TARGET, classify("openai", "gpt", Refused(429, retry_after=asked)))
        assert target.wait(TARGET) == wait


@given(st.lists(st.sampled_from(["first", "extra", "second"]), max_size=400))
def test_extra_calls_stay_within_their_share_of_the_last_minute(steps: list[str]) -> None:
    clock = Turned()
    budget = RetryBudget(clock, ratio=0.2, least=3)
    firsts: list[float] = []
    extras: list[float] = []
    for step in steps:
        if step == "second":
            clock.seconds += 7
        elif step == "first":
            budget.first("openai")
            firsts.append(clock.seconds)
        elif budget.take("openai"):
            extras.append(clock.seconds)
            since = int(clock.seconds) - 60
            recent = [sum(1 for at in calls if int(at) > since) for calls in (firsts, extras)]
            assert recent[1] <= max(3, 0.2 * recent[0])


def test_the_budget_comes_back_after_a_minute_and_is_per_provider() -> None:
    clock = Turned()
    budget = RetryBudget(clock, ratio=0, least=2)
    assert [budget.take("openai") for _ in range(3)] == [True, True, False]
    assert budget.used("openai") == 1
    assert budget.take("anthropic")
    clock.seconds += 61
    assert budget.take("openai")
    assert budget.used("openai") == pytest.approx(0.5)
