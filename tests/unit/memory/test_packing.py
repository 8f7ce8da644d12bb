"""Hits packed for a prompt."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from janus_memory.model import ContextTurn, Hit, Kind, Memory, Scope, Span, Turn
from janus_memory.packing import Packing

WHEN = datetime(2023, 5, 8, tzinfo=UTC)


def hit(position: int, text: str, score: float = 1.0) -> Hit:
    when = WHEN + timedelta(minutes=position)
    return Hit(
        Turn(f"m{position}", Scope(thread="t"), "Ann", text, b"", 1, (), (), position, 1, when, when, ""),
        score,
    )


def fact(memory_id: str, text: str, *sources: str, score: float = 1.0, thread: str = "") -> Hit:
    rests_on = json.dumps([{"message_id": each, "quote": "", "origin": 1} for each in sources])
    return Hit(
        Memory(
            id=memory_id, version=1, kind=Kind.FACT, text=text, scope=Scope(thread=thread), predicate="",
            provenance_json=rests_on, valid_from=WHEN + timedelta(days=1), valid_to=None, expires_at=None,
            importance=0.5, metadata_json="", recorded_at=WHEN, superseded_at=None,
        ),
        score,
    )  # fmt: skip


def beside(position: int, text: str, session: int = 1) -> ContextTurn:
    return ContextTurn(f"m{position}", "t", position, session, "Bob", text, WHEN + timedelta(minutes=position))


def pack(hits: list[Hit], max_tokens: int) -> tuple[Span, ...]:
    return Packing(hits, max_tokens).spans()


def around(hits: list[Hit], max_tokens: int, reach: int, *turns: ContextTurn) -> tuple[Span, ...]:
    packing = Packing(hits, max_tokens)
    packing.add_around(turns, reach)
    return packing.spans()


def test_neighbours_become_one_span_under_their_date() -> None:
    [span] = pack([hit(4, "second thing"), hit(3, "first thing", 0.5)], 100)
    assert span.text == "[8 May 2023]\nAnn: first thing\nAnn: second thing"
    assert span.record_ids == ("m3", "m4")
    assert span.score == 1.0


def test_a_near_duplicate_of_a_better_hit_is_dropped() -> None:
    spans = pack([hit(1, "we painted the old bridge red"), hit(9, "We painted the old bridge, red!")], 100)
    assert [span.record_ids for span in spans] == [("m1",)]


LETTERS = st.sampled_from("abcdefghijklmnopqrstuvwxyz")


@given(st.lists(st.frozensets(LETTERS, min_size=1) | st.frozensets(LETTERS, min_size=22), max_size=12))
def test_every_near_duplicate_is_dropped(texts: list[frozenset[str]]) -> None:
    kept: list[frozenset[str]] = []
    for words in texts:
        if not any(len(words & other) >= 0.9 * len(words | other) for other in kept if min(len(words), len(other)) > 3):
            kept.append(words)
    hits = [hit(n, " ".join(f"x{letter * 2}" for letter in sorted(words))) for n, words in enumerate(texts, 1)]
    hits = [replace(each, record=replace(each.record, speaker="")) for each in hits]
    assert sum(len(span.record_ids) for span in pack(hits, 10_000)) == len(kept)


def test_what_does_not_fit_makes_room_for_what_does() -> None:
    spans = pack([hit(1, "long " * 200), hit(9, "short")], 20)
    assert [span.record_ids for span in spans] == [("m9",)]


def test_turns_around_one_that_was_found_are_part_of_its_span_and_are_named_as_context() -> None:
    [span] = around([hit(4, "in Oslo")], 100, 1, beside(3, "where do you live"), beside(5, "how nice"))
    assert span.text == "[8 May 2023]\nBob: where do you live\nAnn: in Oslo\nBob: how nice"
    assert (span.record_ids, span.context_ids) == (("m3", "m4", "m5"), ("m3", "m5"))


def test_the_nearest_of_the_best_are_shown_first() -> None:
    hits = [hit(9, "best"), hit(2, "good")]
    assert Packing(hits, 100).around(2) == [("t", 7, 11), ("t", 0, 4)]
    said = [beside(at, f"word{at}") for at in (1, 3, 4, 7, 8, 10, 11)]
    alone = sum(span.tokens for span in pack(hits, 100))
    for more, expected in enumerate([[], ["m8"], ["m8", "m10"], ["m8", "m10", "m1"], ["m8", "m10", "m1", "m3"],
                                     ["m8", "m10", "m1", "m3", "m7"]]):  # fmt: skip
        spans = around(hits, alone + 7 * more, 2, *said)
        assert {each for span in spans for each in span.context_ids} == set(expected)


def test_nothing_is_looked_for_when_the_hits_leave_no_room() -> None:
    packing = Packing([fact("f", "lives in Oslo now", "m1"), hit(9, "in Oslo")], 17)
    assert sum(span.tokens for span in packing.spans()) >= 13
    assert (packing.sources(), packing.around(5)) == ([], [])


def test_what_is_around_never_skips_a_turn_that_is_missing_or_of_another_session() -> None:
    [span] = around([hit(4, "in Oslo")], 100, 3, beside(2, "far"), beside(5, "later", session=2), beside(6, "further"))
    assert span.record_ids == ("m4",)


def test_what_is_around_reaches_over_other_hits() -> None:
    [span] = around([hit(4, "in Oslo"), hit(5, "by the sea")], 100, 2, beside(3, "where"), beside(6, "how nice"))
    assert (span.record_ids, span.context_ids) == (("m3", "m4", "m5", "m6"), ("m3", "m6"))


def test_only_so_many_turns_are_looked_for_as_a_prompt_can_use() -> None:
    turns = [hit(position, f"word{position}") for position in range(1, 201)]
    facts = [fact(f"f{n}", f"fact{n}", *(f"m{n}-{source}" for source in range(64))) for n in range(10)]
    packing = Packing([*turns, *facts], 200_000)
    assert [len(packing.around(reach)) for reach in (0, 1, 10)] == [0, 128, 12]
    assert packing.sources() == [("", f"m{n}-{source}") for n in range(4) for source in range(64)]


def test_a_memory_is_one_with_the_turns_that_it_rests_on() -> None:
    packing = Packing([fact("f", "Ann lives in Oslo", "m7", "gone", "m3")], 100)
    assert packing.sources() == [("", "m7"), ("", "gone"), ("", "m3")]
    packing.add_sources({("", "m7"): beside(7, "she moved there"), ("", "m3"): beside(3, "a flat by the fjord")})
    [span] = packing.spans()
    assert span.text == (
        "[9 May 2023]\nAnn lives in Oslo\n[8 May 2023]\nBob: a flat by the fjord\nBob: she moved there"
    )
    assert (span.record_ids, span.context_ids) == (("f", "m3", "m7"), ("m3", "m7"))
    assert (span.occurred_at, span.score) == (WHEN + timedelta(minutes=3), 1.0)


def test_a_source_next_to_a_turn_that_was_found_is_shown_there() -> None:
    packing = Packing([fact("f", "Ann lives in Oslo", "m4", "m5", thread="t"), hit(4, "I moved to the fjord")], 100)
    assert packing.sources() == [("t", "m4"), ("t", "m5")]
    packing.add_sources({("t", "m4"): beside(4, "found already"), ("t", "m5"): beside(5, "really")})
    talk, known = packing.spans()
    assert (talk.record_ids, talk.context_ids) == (("m4", "m5"), ("m5",))
    assert (known.record_ids, known.context_ids) == (("f",), ())


def test_a_turn_that_two_memories_rest_on_is_shown_once_with_the_better() -> None:
    packing = Packing([fact("good", "Ann lives in Oslo", "m4"), fact("poor", "Ann has a flat", "m4", "m9")], 100)
    assert packing.sources() == [("", "m4"), ("", "m9")]
    packing.add_sources({("", "m4"): beside(4, "we moved"), ("", "m9"): beside(9, "three rooms")})
    assert {span.record_ids for span in packing.spans()} == {("good", "m4"), ("poor", "m9")}


def test_a_source_that_says_the_same_is_dropped() -> None:
    packing = Packing([fact("f", "Bob painted the old bridge red", "m4")], 100)
    packing.sources()
    packing.add_sources({("", "m4"): beside(4, "painted the old bridge red")})
    assert [span.record_ids for span in packing.spans()] == [("f",)]


@given(st.lists(st.tuples(st.integers(1, 40), st.text("abcde ", max_size=60)), max_size=20), st.integers(1, 200))
def test_the_budget_holds_and_spans_are_in_order(items: list[tuple[int, str]], budget: int) -> None:
    spans = pack([hit(position, text) for position, text in dict(items).items()], budget)
    assert sum(span.tokens for span in spans) <= budget
    assert [span.occurred_at for span in spans] == sorted(span.occurred_at for span in spans)


_TEXTS = st.text("abcde ", max_size=30)


@given(
    st.dictionaries(st.integers(1, 30), _TEXTS, max_size=8),
    st.dictionaries(st.integers(1, 30), _TEXTS, max_size=30),
    st.lists(st.tuples(_TEXTS, st.lists(st.integers(1, 30), max_size=3)), max_size=4),
    st.integers(1, 200),
    st.integers(0, 4),
)
def test_what_is_beside_displaces_no_hit_and_no_record_is_shown_twice(
    found: dict[int, str],
    said: dict[int, str],
    known: list[tuple[str, list[int]]],
    budget: int,
    reach: int,
) -> None:
    facts = [fact(f"f{n}", text, *(f"m{at}" for at in rests_on)) for n, (text, rests_on) in enumerate(known)]
    hits = [*facts, *(hit(position, text) for position, text in found.items())]
    alone = {each for span in pack(hits, budget) for each in span.record_ids}
    packing = Packing(hits, budget)
    sources = packing.sources()
    packing.add_sources({(thread, name): beside(int(name[1:]), said[int(name[1:])])
                         for thread, name in sources if int(name[1:]) in said})  # fmt: skip
    near = {at for _, first, last in packing.around(reach) for at in range(first, last + 1)}
    packing.add_around([beside(at, said[at]) for at in sorted(near & said.keys())], reach)
    spans = packing.spans()
    shown = [each for span in spans for each in span.record_ids]
    context = {each for span in spans for each in span.context_ids}
    assert len(shown) == len(set(shown))
    assert set(shown) - context == alone
    assert sum(span.tokens for span in spans) <= budget
    assert [span.occurred_at for span in spans] == sorted(span.occurred_at for span in spans)
