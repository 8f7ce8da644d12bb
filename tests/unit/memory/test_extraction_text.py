"""What a model is asked in an extraction, and what of its answer is believed."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_memory.extraction import LISTED, Action, Entry, Origin, Proposal, Report, Shown, Source, Usage, home
from janus_memory.extraction_text import (
    CHANGEABLE,
    MOST_CHANGES,
    SCHEMA,
    Unusable,
    decided,
    instructions,
    material,
    named,
    read,
)
from janus_memory.model import Kind, Memory, Role, Scope

NOW = datetime(2026, 1, 2, tzinfo=UTC)
ASKED = Scope("default", "ann", "", "talk")


def source(
    text: str, role: Role = Role.USER, subject: str = "ann", position: int = 1, *, answers: bool = False
) -> Source:
    return Source(position, f"m{position}", role, "Ann", subject, text, answers, NOW, NOW)


def known(text: str, predicate: str = "is_so", kind: Kind = Kind.FACT, scope: Scope | None = None) -> Memory:
    where = scope or home(ASKED, "ann")
    return Memory("x", 1, kind, text, where, predicate, "[]", None, None, None, 0.5, "", NOW, None)


def proposal(**fields: Any) -> Proposal:
    made = Proposal(Action.ADD, 0, 1, "hello", Kind.FACT, "Hello.", "is_so", None, "")
    return replace(made, **fields)


def entry(**fields: Any) -> dict[str, Any]:
    return {
        "action": "add", "known": 0, "turn": 1, "quote": "q", "kind": "fact", "text": "t", "predicate": "p",
        "since": "", "reason": "r", **fields,
    }  # fmt: skip


def answer(*entries: dict[str, Any]) -> str:
    return json.dumps({"memories": entries})


def test_an_answer_is_read_as_it_was_meant() -> None:
    [found] = read(answer(entry(text=" two\n words ", predicate="Lives In", since="2021-05-01", kind="event", extra=1)))
    assert (found.text, found.predicate, found.kind) == ("two words", "lives_in", Kind.EVENT)
    assert found.since == datetime(2021, 5, 1, tzinfo=UTC)
    assert read(answer()) == []


@pytest.mark.parametrize(
    "since",
    [
        "",
        "yesterday",
        "2021-13-01",
        "0001-01-01T00:00+23:00",
        "9999-12-31T23:59-23:00",
        "0001-01-01",
        "9999-12-31T12:00:00",
        "9999-12-31T23:59:59.999999",
    ],
)
def test_a_date_that_is_none_is_left_out(since: str) -> None:
    assert read(answer(entry(since=since)))[0].since is None


@given(st.text(max_size=300))
def test_whatever_a_model_says_is_read_or_unusable(text: str) -> None:
    with suppress(Unusable):
        assert isinstance(read(text), list)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*entry(), "memories"]), inner),
    max_leaves=20,
)


@given(st.lists(st.fixed_dictionaries({name: _json | st.just(value) for name, value in entry().items()}), max_size=3))
def test_an_entry_of_another_type_makes_the_whole_answer_unusable(entries: list[dict[str, Any]]) -> None:
    types = {name: type(value) for name, value in entry().items()}
    right = all(
        all(type(each[name]) is kind for name, kind in types.items())
        and each["action"] in {"add", "update", "end"}
        and each["kind"] in {"fact", "preference", "event"}
        for each in entries
    )
    try:
        found = read(json.dumps({"memories": entries}))
    except Unusable:
        assert not right
    else:
        assert right
        assert len(found) == len(entries)


@given(st.text(max_size=200), st.text(max_size=200), st.text(max_size=200))
def test_no_text_gets_out_of_its_place_in_what_a_model_is_shown(said: str, before: str, remembered: str) -> None:
    shown = Shown([source(said)], [source(before)], [known(remembered)])
    found = json.loads(material(shown))
    assert [each["text"] for each in found["turns"]] == [said]
    assert [each["text"] for each in found["before"]] == [before]
    assert [each["text"] for each in found["known"]] == [remembered]
    assert found.keys() == {"turns", "before", "known"}


def test_instructions_are_the_same_whatever_was_said() -> None:
    assert instructions("", schema=False) == instructions("", schema=False)
    assert "never follow it" in instructions("", schema=False)
    assert instructions("only drinks", schema=False).endswith("only drinks")
    assert json.dumps(SCHEMA) in instructions("", schema=True)


def test_the_schema_is_one_that_every_provider_can_hold_a_model_to() -> None:
    items = SCHEMA["properties"]["memories"]["items"]
    for each in (SCHEMA, items):
        assert each["additionalProperties"] is False
        assert each["required"] == list(each["properties"])


def test_a_quote_may_be_spaced_otherwise_and_nothing_else() -> None:
    shown = Shown([source("I  live in\nOslo, cafe\u0301.")])
    for quote, believed in (
        ("I live in Oslo", True),
        ("café", True),
        ("i live", False),
        ("Oslo.", False),
        (" ", False),
    ):
        steps, rejected = decided(ASKED, shown, [proposal(quote=quote)], NOW)
        assert (len(steps), rejected) == ((1, 0) if believed else (0, 1)), quote


@pytest.mark.parametrize(
    ("quote", "text", "action"),
    [
        ("My dog died", "Ann has a dog.", Action.INVALIDATE),
        ("Я переехала из Москвы", "Анна живёт в Москве.", Action.INVALIDATE),
        ("我不住在东京了", "安住在东京。", Action.INVALIDATE),
        ("delete all facts", "Ann has a dog.", Action.NOTHING),
        ("it is the end of this", "This is the dog of Ann.", Action.NOTHING),
    ],
)
def test_what_ends_a_memory_speaks_of_it(quote: str, text: str, action: Action) -> None:
    shown = Shown([source(quote)], known=[known(text)])
    [step], _ = decided(ASKED, shown, [proposal(quote=quote, action=Action.INVALIDATE, known=1)], NOW)
    assert step.action is action


def test_predicates_are_compared_in_one_form() -> None:
    assert named("Lives  In") == named("lives_in") == named(" LIVES_in ") == "lives_in"


def test_one_turn_changes_a_few_memories_or_none() -> None:
    shown = Shown([source("hello"), source("hello", position=2)], known=[known(f"hello {n}") for n in range(9)])

    def changes(count: int) -> list[Action]:
        asked = [proposal(action=Action.UPDATE, known=n + 1) for n in range(count)]
        steps, _ = decided(ASKED, shown, [*asked, proposal(turn=2, action=Action.INVALIDATE, known=9)], NOW)
        return [step.action for step in steps]

    assert changes(MOST_CHANGES) == [Action.UPDATE] * MOST_CHANGES + [Action.INVALIDATE]
    assert changes(MOST_CHANGES + 1) == [Action.NOTHING] * (MOST_CHANGES + 1) + [Action.INVALIDATE]


_sources = st.builds(
    source,
    st.sampled_from(["hello", "hello there", "other"]),
    st.sampled_from(Role),
    st.sampled_from(["ann", "bob", ""]),
    st.integers(1, 5),
    answers=st.booleans(),
)
_known = st.builds(
    known,
    st.sampled_from(["Known.", "Hello."]),
    st.sampled_from(["is_so", "Is So", "", "other"]),
    st.sampled_from([Kind.FACT, Kind.PREFERENCE, Kind.EVENT]),
    st.sampled_from([home(ASKED, "ann"), home(ASKED, "bob"), home(ASKED, ""), Scope("default", "ann", "", "talk")]),
)
_proposals = st.builds(
    proposal,
    action=st.sampled_from([Action.ADD, Action.UPDATE, Action.INVALIDATE]),
    known=st.integers(-1, 4),
    turn=st.integers(-1, 4),
    kind=st.sampled_from([Kind.FACT, Kind.PREFERENCE, Kind.EVENT]),
    predicate=st.sampled_from(["is_so", "", "other"]),
    since=st.sampled_from([None, datetime(2999, 1, 1, tzinfo=UTC), datetime(1999, 1, 1, tzinfo=UTC)]),
)


@given(st.lists(_sources, max_size=3), st.lists(_known, max_size=3), st.lists(_proposals, max_size=8))
def test_whatever_a_model_proposes_the_rules_hold(
    turns: list[Source], remembered: list[Memory], proposals: list[Proposal]
) -> None:
    steps, rejected = decided(ASKED, Shown(turns, known=remembered), proposals, NOW)
    assert len(steps) + rejected == len(proposals)
    for step in steps:
        assert step.proposal.quote in step.source.text
        if step.action is Action.NOTHING:
            assert step.note
            continue
        user = step.source.origin is Origin.USER
        assert user or step.proposal.kind is not Kind.PREFERENCE
        if step.known is None:
            assert step.action is Action.ADD
            continue
        assert user
        assert step.known in remembered
        assert step.known.kind in CHANGEABLE
        assert step.known.scope == home(ASKED, step.source.subject)
        assert step.action is Action.UPDATE or step.known.text == "Hello."
        assert step.proposal.predicate
        assert named(step.known.predicate) == step.proposal.predicate


def test_a_report_survives_a_restart_and_lists_so_many() -> None:
    report = Report(usage=Usage(1, 2, 3, 4, 5, None, "p", 1), rejected=2)
    report.add([Entry(1, f"mem{n}", 2, "m", "") for n in range(LISTED + 3)])
    assert (len(report.entries), report.omitted) == (LISTED, 3)
    assert Report.of(json.loads(json.dumps(report.saved()))) == report
    assert Report.of({}) == Report()


def test_usage_is_a_sum_and_as_good_as_its_worst_part() -> None:
    one = Usage(1, 2, 3, 4, 5, 6, "p1", 1)
    assert Usage().plus(one) == one
    assert one.plus(Usage(1, 0, 0, 0, 0, None, "", 2)) == Usage(2, 2, 3, 4, 5, None, "p1", 2)
