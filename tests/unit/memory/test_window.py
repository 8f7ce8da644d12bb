"""Trimming working memory to a budget."""

from dataclasses import replace
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from janus_memory.model import Scope, Turn
from janus_memory.window import estimate_tokens, newest, unparted

WHEN = datetime(2024, 1, 1, tzinfo=UTC)


def turn(position: int, tokens: int = 10, calls: tuple[str, ...] = (), results: tuple[str, ...] = ()) -> Turn:
    return Turn(
        f"m{position}", Scope(thread="t"), "", "", b"", tokens, calls, results, position, 1, WHEN, WHEN, ""
    )  # fmt: skip


@st.composite
def threads(draw: st.DrawFn) -> list[Turn]:
    """Turns with tool calls, some answered later, from any position on."""
    first = draw(st.integers(1, 3))
    waiting: list[str] = []
    turns: list[Turn] = []
    for place in range(draw(st.integers(0, 20))):
        answered = tuple(draw(st.sets(st.sampled_from(waiting), max_size=2))) if waiting else ()
        calls = tuple(f"c{place}.{i}" for i in range(draw(st.integers(0, 2))))
        waiting = [call for call in waiting if call not in answered] + list(calls)
        turns.append(turn(first + place, draw(st.integers(1, 50)), calls, answered))
    return turns


@given(threads(), st.integers(1, 400), st.integers(1, 20))
def test_a_window_is_the_newest_within_both_budgets(turns: list[Turn], tokens: int, messages: int) -> None:
    kept = newest(turns, tokens, messages)
    assert sum(each.tokens for each in kept) <= tokens
    assert len(kept) <= messages
    assert kept == turns[len(turns) - len(kept) :]


@given(threads(), st.integers(1, 400), st.integers(1, 20))
def test_no_result_is_shown_without_its_call(turns: list[Turn], tokens: int, messages: int) -> None:
    kept = newest(turns, tokens, messages)
    left_out = {call for each in turns[: len(turns) - len(kept)] for call in each.calls}
    assert not left_out & {call for each in kept for call in each.results}


@given(threads(), st.integers(1, 400), st.integers(1, 20))
def test_a_window_could_not_be_longer(turns: list[Turn], tokens: int, messages: int) -> None:
    kept = newest(turns, tokens, messages)
    for size in range(len(kept) + 1, len(turns) + 1):
        run = turns[-size:]
        made = {call for each in run for call in each.calls}
        results = {call for each in run for call in each.results}
        parted = bool(results - made)
        too_much = sum(each.tokens for each in run) > tokens or size > messages
        assert parted or too_much


def test_a_call_and_its_result_leave_together() -> None:
    turns = [turn(1), turn(2, calls=("a",)), turn(3, results=("a",)), turn(4)]
    assert [each.position for each in newest(turns, 25, 10)] == [4]
    assert [each.position for each in newest(turns, 30, 10)] == [2, 3, 4]


def test_a_result_whose_call_is_further_back_than_was_read_is_left_out() -> None:
    turns = [turn(7, results=("a",)), turn(8)]
    assert [each.position for each in newest(turns, 100, 10)] == [8]


def test_a_result_without_any_call_is_left_out_and_does_not_hide_the_thread() -> None:
    turns = [turn(1), turn(2, results=("never made",)), turn(3)]
    assert [each.position for each in newest(unparted(turns), 100, 10)] == [1, 3]


def test_a_call_is_left_out_with_a_result_that_is_elsewhere_and_stays_while_it_waits() -> None:
    turns = [turn(1), turn(2, calls=("a",)), turn(4, calls=("b",))]
    assert [each.position for each in unparted(turns, {"a"})] == [1, 4]


def test_what_is_left_out_takes_along_what_belongs_to_it() -> None:
    turns = [
        turn(1, calls=("a", "b")),
        turn(2, results=("a",)),
        turn(3, results=("c",), calls=("d",)),
        turn(4, results=("d",)),
        turn(5),
    ]
    assert [each.position for each in unparted(turns, {"a", "b", "d"})] == [5]


@given(threads(), st.sets(st.integers(1, 25)))
def test_of_any_turns_those_are_left_that_belong_to_none_elsewhere(turns: list[Turn], hidden: set[int]) -> None:
    kept = unparted(
        [each for each in turns if each.position not in hidden], {call for each in turns for call in each.results}
    )
    made = {call for each in kept for call in each.calls}
    given_ = {call for each in kept for call in each.results}
    answered = {call for each in turns for call in each.results}
    assert given_ <= made
    assert not (made & answered) - given_


def large(position: int, mib: float, calls: tuple[str, ...] = (), results: tuple[str, ...] = ()) -> Turn:
    return replace(turn(position, calls=calls, results=results), content=bytes(int(mib * 1024 * 1024)))


def test_a_window_is_one_that_a_client_can_receive() -> None:
    turns = [turn(1), *[large(position, 1) for position in range(2, 7)]]
    assert [each.position for each in newest(turns, 1000, 10)] == [5, 6]


def test_large_turns_keep_calls_with_their_results() -> None:
    turns = [large(1, 2, calls=("a",)), large(2, 1, results=("a",)), large(3, 1)]
    assert [each.position for each in newest(turns, 1000, 10)] == [3]


def test_the_newest_turn_is_there_however_large() -> None:
    assert [each.position for each in newest([turn(1), large(2, 4)], 1000, 10)] == [2]
    belonging = [turn(1), large(2, 2, calls=("a",)), large(3, 3, results=("a",))]
    assert [each.position for each in newest(belonging, 1000, 10)] == [2, 3]


def test_tokens_are_estimated_by_script() -> None:
    assert estimate_tokens("") == 0
    assert estimate_tokens("abcd" * 10) == 10
    assert estimate_tokens("東京") == 2
