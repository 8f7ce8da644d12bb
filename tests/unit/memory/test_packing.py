"""Hits packed for a prompt."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from janus_memory.model import Hit, Scope, Turn
from janus_memory.packing import pack

WHEN = datetime(2023, 5, 8, tzinfo=UTC)


def hit(position: int, text: str, score: float = 1.0) -> Hit:
    when = WHEN + timedelta(minutes=position)
    return Hit(
        Turn(f"m{position}", Scope(thread="t"), "Ann", text, b"", 1, (), (), position, 1, when, when, ""),
        score,
    )


def test_neighbours_become_one_span_under_their_date() -> None:
    [span] = pack([hit(4, "second thing"), hit(3, "first thing", 0.5)], 100)
    assert span.text == "[8 May 2023]\nAnn: first thing\nAnn: second thing"
    assert span.record_ids == ("m3", "m4")
    assert span.score == 1.0


def test_a_near_duplicate_of_a_better_hit_is_dropped() -> None:
    spans = pack([hit(1, "we painted the old bridge red"), hit(9, "We painted the old bridge, red!")], 100)
    assert [span.record_ids for span in spans] == [("m1",)]


def test_what_does_not_fit_makes_room_for_what_does() -> None:
    spans = pack([hit(1, "long " * 200), hit(9, "short")], 20)
    assert [span.record_ids for span in spans] == [("m9",)]


@given(st.lists(st.tuples(st.integers(1, 40), st.text("abcde ", max_size=60)), max_size=20), st.integers(1, 200))
def test_the_budget_holds_and_spans_are_in_order(items: list[tuple[int, str]], budget: int) -> None:
    spans = pack([hit(position, text) for position, text in dict(items).items()], budget)
    assert sum(span.tokens for span in spans) <= budget
    assert [span.occurred_at for span in spans] == sorted(span.occurred_at for span in spans)
