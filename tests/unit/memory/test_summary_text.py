"""The text of rolling summaries."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_memory.model import Lexicon, Role, Said, Summary
from janus_memory.summarising import fitting
from janus_memory.summary_text import accepted, clipped, extract, material, sentences, shown

WHEN = datetime(2023, 5, 8, 13, 56, tzinfo=UTC)
EMPTY = Lexicon(0, 0, {})


def said(text: str, role: Role = Role.USER, speaker: str = "Ann", position: int = 1) -> Said:
    return Said(position, role, speaker, text, WHEN)


def test_an_extract_says_who_said_it_and_when() -> None:
    choice = sentences("", [said("I moved to Lisbon."), said("Lovely city.", Role.ASSISTANT, "")])
    assert extract(choice, EMPTY, 500) == "8 May 2023, Ann: I moved to Lisbon.\n8 May 2023, Assistant: Lovely city."


def test_an_extract_prefers_what_is_rare_in_the_space() -> None:
    choice = sentences("", [said("Good morning everyone today."), said("My allergy is peanuts.")])
    lexicon = Lexicon(100, 500, {"good": 80, "morn": 80, "everyon": 70, "today": 70, "allergy": 1, "peanut": 1})
    assert extract(choice, lexicon, 45) == "8 May 2023, Ann: My allergy is peanuts."


def test_an_extract_does_not_say_a_thing_twice_where_it_could_say_another() -> None:
    choice = sentences("", [said("Heron nest pond. Heron nest pond! Bridge paint red.")])
    assert extract(choice, EMPTY, 75).count("Heron") == 1


def test_an_extract_goes_on_from_the_summary_so_far() -> None:
    first = extract(sentences("", [said("My allergy is peanuts.")]), EMPTY, 500)
    again = extract(sentences(first, [said("I moved to Lisbon.")]), EMPTY, 500)
    assert again == "8 May 2023, Ann: My allergy is peanuts.\n8 May 2023, Ann: I moved to Lisbon."


def test_results_of_tools_and_instructions_are_no_part_of_an_extract() -> None:
    spoken = [said("raw rows of numbers", Role.TOOL), said("You are helpful.", Role.SYSTEM), said("Thanks, peanuts.")]
    assert extract(sentences("", spoken), EMPTY, 500) == "8 May 2023, Ann: Thanks, peanuts."


@given(st.lists(st.text(max_size=400), max_size=12), st.text(max_size=500), st.integers(200, 1_000))
def test_an_extract_is_bounded_and_always_the_same(spoken: list[str], previous: str, most: int) -> None:
    turns = [said(text) for text in spoken]
    made = extract(sentences(previous, turns), EMPTY, most)
    assert len(made) <= most
    assert made == extract(sentences(previous, turns), EMPTY, most)


@given(st.text(max_size=300), st.text(max_size=300))
def test_no_text_gets_out_of_its_place_in_what_a_model_is_given(previous: str, text: str) -> None:
    given_to_it = json.loads(material(previous, [said(text)]))
    assert (given_to_it["summary"], given_to_it["turns"][0]["text"]) == (previous, text)
    assert given_to_it.keys() == {"summary", "turns"}


@pytest.mark.parametrize("nonsense", ["", "  \n", "...", "\x00"])
def test_an_answer_without_a_word_is_no_summary(nonsense: str) -> None:
    assert accepted(nonsense, 500) == ""


@given(st.text(max_size=300), st.integers(1, 200))
def test_what_is_too_long_is_cut(text: str, most: int) -> None:
    assert len(clipped(text, most)) <= most
    assert len(text) > most or clipped(text, most) == text


def test_what_is_cut_is_cut_between_words() -> None:
    assert clipped("the heron stood in the pond", 20) == "the heron stood in…"


def test_a_summary_says_which_turns_it_misses() -> None:
    summary = Summary("They met.", 10)
    assert shown(summary, 11) == "They met."
    assert shown(summary, 5) == "They met."
    assert shown(summary, 12).endswith("(Turn 11 is neither in this summary nor in the window.)")
    assert shown(summary, 21).endswith("(Turns 11 to 20 are neither in this summary nor in the window.)")
    assert shown(None, 5) == shown(Summary("", 10), 21) == ""


def test_a_piece_is_bounded_and_never_empty() -> None:
    turns = [said("x" * 50, position=place) for place in range(1, 6)]
    assert [turn.position for turn in fitting(turns, 120)] == [1, 2]
    assert [turn.position for turn in fitting(turns, 10)] == [1]
    assert fitting([], 10) == []
