"""Candidates as columns, against the same done one by one."""

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.candidates import Candidate, columns

from janus_memory.columns import Columns, joined, nothing
from janus_memory.model import Kind
from janus_memory.recall import spans_around
from janus_memory.text import bag

WHEN = datetime(2023, 5, 8, tzinfo=UTC)

candidates = st.lists(
    st.builds(
        Candidate,
        unit=st.integers(1, 1_000),
        kind=st.sampled_from([Kind.TURN, Kind.FACT]),
        thread=st.sampled_from(["a", "b"]),
        position=st.integers(1, 40),
        session=st.integers(1, 3),
        speaker=st.sampled_from(["", "Ann"]),
        occurred_at=st.just(WHEN),
        importance=st.floats(0, 1),
        bag=st.lists(st.sampled_from(["appl", "drum"]), max_size=3).map(bag),
    ),
    max_size=20,
    unique_by=lambda each: each.unit,
)


def told(found: Columns) -> list[tuple[object, ...]]:
    """Every candidate, with its own terms."""
    ends = np.cumsum(found.lengths).tolist()
    bags = [found.hashes[end - length : end].tobytes() for end, length in zip(ends, found.lengths, strict=True)]
    columns = (found.units, found.turns, found.positions, found.numbers, found.occurred_at, found.importance)
    return list(zip(*(each.tolist() for each in columns), found.threads, found.speakers, bags, strict=True))


@given(candidates, candidates, st.data())
def test_parts_are_joined_and_chosen_from_whole(
    some: list[Candidate], more: list[Candidate], data: st.DataObject
) -> None:
    both = joined([columns(some), nothing(), columns(more)])
    assert told(both) == told(columns(some)) + told(columns(more))
    chosen = [data.draw(st.booleans()) for _ in range(len(both))]
    kept = both.only(np.array(chosen, bool))
    assert told(kept) == [each for each, keep in zip(told(both), chosen, strict=True) if keep]


@given(candidates)
def test_a_session_is_of_its_thread_and_a_memory_of_none(some: list[Candidate]) -> None:
    numbers = columns(some).sessions.tolist()
    whose = [(one.thread, one.session) if one.kind is Kind.TURN else one.unit for one in some]
    assert len(set(zip(numbers, whose, strict=True))) == len(set(numbers)) == len(set(whose))


@given(candidates, st.integers(1, 3), st.data())
def test_spans_cover_what_is_near_a_turn_once(some: list[Candidate], reach: int, data: st.DataObject) -> None:
    among = [data.draw(st.booleans()) for _ in some]
    spans = spans_around(columns(some), reach, np.array(among, bool))
    near = {
        (one.thread, one.position + away)
        for one, chosen in zip(some, among, strict=True)
        if chosen and one.kind is Kind.TURN
        for away in range(-reach, reach + 1)
    }
    covered = [(thread, place) for thread, first, last in spans for place in range(first, last + 1)]
    assert sorted(covered) == sorted(near)


@pytest.mark.parametrize("found", [nothing(), columns([Candidate(1, Kind.FACT, "a", 0, 0, "", WHEN, 0.5, b"")])])
def test_who_has_no_place_has_nobody_around(found: Columns) -> None:
    assert spans_around(found, 3) == []
