"""BM25 over windows, against a plain implementation that renders every window."""

import math
from collections import Counter
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.candidates import Candidate, columns

from janus_memory import bm25
from janus_memory.model import Kind, Lexicon
from janus_memory.text import bag, date_terms, terms

WHEN = datetime(2023, 5, 8, tzinfo=UTC)
WORDS = ["apple", "bridge", "cloud", "drum", "may"]
Line = tuple[str, int]

lines = st.lists(
    st.tuples(st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), st.integers(1, 3)), min_size=1, max_size=15
)


def candidates_of(talk: list[Line]) -> list[Candidate]:
    ordered = sorted(talk, key=lambda each: each[1])
    return [
        Candidate(place, Kind.TURN, "t", place, session, "", WHEN, 0.5, bag(terms(text)))
        for place, (text, session) in enumerate(ordered, 1)
    ]


def lexicon_of(talk: list[Line]) -> Lexicon:
    documents = [[*date_terms(WHEN), *terms(text)] for text, _ in talk]
    return Lexicon(len(talk), sum(map(len, documents)), Counter(t for d in documents for t in set(d)))


def plain_scores(talk: list[Line], query: list[str], before: int, after: int) -> list[float]:
    ordered = sorted(talk, key=lambda each: each[1])
    documents = []
    for place, (_, session) in enumerate(ordered):
        near = [
            text
            for other, (text, its) in enumerate(ordered)
            if its == session and place - before <= other <= place + after
        ]
        documents.append(Counter([*date_terms(WHEN), *(term for text in near for term in terms(text))]))
    lengths = [sum(document.values()) for document in documents]
    mean = sum(lengths) / len(lengths)
    scores = []
    for document, length in zip(documents, lengths, strict=True):
        score = 0.0
        for term in query:
            frequency = sum(term in other for other in documents)
            idf = math.log(1 + (len(documents) - frequency + 0.5) / (frequency + 0.5))
            count = document[term]
            score += idf * count * 2.2 / (count + 1.2 * (1 - 0.75 + 0.75 * length / mean))
        scores.append(score)
    return scores


@settings(max_examples=150)
@given(lines, st.lists(st.sampled_from(WORDS), min_size=1, max_size=4, unique=True))
def test_the_turn_alone_scores_as_plain_bm25(talk: list[Line], words: list[str]) -> None:
    query = terms(" ".join(words))
    found = bm25.scores(columns(candidates_of(talk)), query, lexicon_of(talk))
    assert found["lexical_turn"] == pytest.approx(plain_scores(talk, query, 0, 0))


@settings(max_examples=150)
@given(lines, st.lists(st.sampled_from(WORDS), min_size=1, max_size=4, unique=True))
def test_windows_score_as_if_they_were_rendered(talk: list[Line], words: list[str]) -> None:
    query = terms(" ".join(words))
    alone = {term for text, _ in talk for term in terms(text)} | set(date_terms(WHEN))
    query = [term for term in query if term in alone]
    found = bm25.scores(columns(candidates_of(talk)), query, lexicon_of(talk))
    for name, (before, after) in bm25.WINDOWS.items():
        assert found[name] == pytest.approx(plain_scores(talk, query, before, after)), name


def test_the_order_of_candidates_does_not_matter() -> None:
    talk = [("apple bridge", 1), ("cloud", 1), ("apple", 2), ("drum drum", 2)]
    candidates = candidates_of(talk)
    forward = bm25.scores(columns(candidates), ["appl", "drum"], lexicon_of(talk))
    backward = bm25.scores(columns(candidates[::-1]), ["appl", "drum"], lexicon_of(talk))
    for name in bm25.WINDOWS:
        assert forward[name].tolist() == pytest.approx(backward[name].tolist()[::-1])


def test_a_window_does_not_reach_into_another_session_or_over_a_gap() -> None:
    first = Candidate(1, Kind.TURN, "t", 1, 1, "", WHEN, 0.5, bag(terms("apple")))
    other_session = Candidate(2, Kind.TURN, "t", 2, 2, "", WHEN, 0.5, bag(terms("cloud")))
    later = Candidate(3, Kind.TURN, "t", 9, 1, "", WHEN, 0.5, bag(terms("cloud")))
    found = bm25.scores(columns([first, other_session, later]), ["appl"], Lexicon(3, 12, {"appl": 1}))
    assert found["lexical_wide"][0] > 0
    assert found["lexical_wide"][1] == found["lexical_wide"][2] == 0


def test_a_memory_has_no_neighbours_and_no_date() -> None:
    fact = Candidate(1, Kind.FACT, "t", 0, 0, "", WHEN, 0.5, bag(terms("apple")))
    turn = Candidate(2, Kind.TURN, "t", 1, 1, "", WHEN, 0.5, bag(terms("cloud")))
    found = bm25.scores(columns([fact, turn]), ["may", "cloud"], Lexicon(2, 5, {"may": 1, "cloud": 1}))
    assert all(found[name][0] == 0 for name in bm25.WINDOWS)


def test_statistics_that_lag_behind_do_not_break_scores() -> None:
    found = bm25.scores(columns(candidates_of([("apple", 1), ("apple cloud", 1)])), ["appl"], Lexicon(0, 0, {}))
    assert (found["lexical_turn"] > 0).all()


def test_nothing_found_is_nothing_scored() -> None:
    assert all(len(values) == 0 for values in bm25.scores(columns([]), ["appl"], Lexicon(0, 0, {})).values())


@settings(max_examples=150)
@given(lines, st.data())
def test_a_window_has_the_lines_near_in_position_that_are_there(talk: list[Line], data: st.DataObject) -> None:
    kept = [each for each in candidates_of(talk) if data.draw(st.booleans())]
    shuffled = data.draw(st.permutations(kept))
    found = bm25.scores(columns(shuffled), ["appl"], Lexicon(100, 1_000, {"appl": 1}))
    for name, (before, after) in bm25.WINDOWS.items():
        for candidate, score in zip(shuffled, found[name].tolist(), strict=True):
            near = [
                other
                for other in kept
                if other.session == candidate.session and -before <= other.position - candidate.position <= after
            ]
            assert (score > 0) == any(bag(["appl"]) in _hashes(other) for other in near), name


def _hashes(candidate: Candidate) -> list[bytes]:
    return [candidate.bag[at : at + 4] for at in range(0, len(candidate.bag), 4)]
