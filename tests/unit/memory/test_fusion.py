"""Fusion: standardised scores, bonuses, and how a score is explained."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.candidates import Candidate, columns

from janus_memory import fusion
from janus_memory.model import LEXICAL_MODEL, Kind, Weights

NOW = datetime(2024, 1, 1, tzinfo=UTC)
PLAIN = replace(fusion.RECIPE, speaker=0.0, session=0.0)


def candidate(unit: int, speaker: str = "", session: int = 1, age_days: float = 0, kind: Kind = Kind.TURN) -> Candidate:
    return Candidate(unit, kind, "t", unit, session, speaker, NOW - timedelta(days=age_days), 0.5, b"")


def rank(candidates: list[Candidate], raw: list[float], weights: Weights = PLAIN, query: str = "x") -> fusion.Ranking:
    return fusion.Ranking(columns(candidates), {"lexical_turn": np.array(raw)}, weights, query, NOW)


scores = st.lists(st.floats(0, 1000, allow_nan=False), min_size=1, max_size=30)


@given(scores)
def test_scores_are_finite_and_the_order_is_a_permutation(raw: list[float]) -> None:
    ranking = rank([candidate(i) for i in range(len(raw))], raw, fusion.RECIPE)
    assert np.isfinite(ranking.total).all()
    assert sorted(ranking.order) == list(range(len(raw)))


@given(st.lists(st.tuples(st.sampled_from([1.0, 2.0]), st.integers(0, 3)), min_size=1, max_size=12))
def test_the_best_come_first_as_their_scores_say_and_of_equals_the_latest(raw: list[tuple[float, int]]) -> None:
    ranking = rank([candidate(i) for i in range(len(raw))], [value + noise * 1e-13 for value, noise in raw])
    assert ranking.order == sorted(range(len(raw)), key=lambda row: (-ranking.total[row], -row))


def test_what_differs_by_rounding_alone_is_equal() -> None:
    ranking = rank([candidate(i) for i in range(4)], [2.0 + 1e-13, 1.0, 2.0, 1.5])
    assert ranking.order == [2, 0, 3, 1]
    assert ranking.total[2] == ranking.total[0]


@given(scores, st.floats(0.5, 100), st.floats(-50, 50))
def test_a_leg_that_is_scaled_and_shifted_says_the_same(raw: list[float], scale: float, shift: float) -> None:
    values = np.array(raw)
    if values.std() > 1e-3:
        moved = fusion.standardised(values * scale + shift)
        assert np.allclose(fusion.standardised(values), moved, atol=1e-6)


@given(scores)
def test_one_leg_alone_keeps_its_order(raw: list[float]) -> None:
    total = rank([candidate(i) for i in range(len(raw))], raw).total
    if np.std(raw) >= 1e-9:
        assert all(total[i] >= total[j] for i in range(len(raw)) for j in range(len(raw)) if raw[i] > raw[j])


@given(scores)
def test_the_contributions_add_up_to_the_score(raw: list[float]) -> None:
    everything = replace(fusion.RECIPE, recency=0.5, importance=0.5)
    candidates = [candidate(i, "Ann" if i % 2 else "Bob", i // 3, i) for i in range(len(raw))]
    ranking = rank(candidates, raw, everything, "what did Ann say?")
    for row in range(len(raw)):
        assert sum(detail.contribution for detail in ranking.details(row)) == pytest.approx(
            ranking.total[row], abs=1e-9
        )


def test_a_leg_that_says_the_same_of_all_says_nothing() -> None:
    assert not fusion.standardised(np.array([3.0, 3.0, 3.0])).any()


def test_naming_the_speaker_lifts_their_turns() -> None:
    weights = replace(PLAIN, speaker=0.4)
    ranking = rank([candidate(1, "Bob"), candidate(2, "Ann Lee")], [1.0, 1.0], weights, "Where did ann go?")
    assert ranking.order[0] == 1


def test_a_session_is_lifted_by_its_three_best() -> None:
    candidates = [candidate(i, session=s) for i, s in enumerate([1, 1, 1, 1, 2])]
    lift = fusion.session_lift(columns(candidates), np.array([4.0, 3.0, 2.0, 0.0, 1.0]))
    assert lift.tolist() == [3.0, 3.0, 3.0, 3.0, 1.0]


def test_recency_halves_every_thirty_days() -> None:
    values = fusion.recency(columns([candidate(1), candidate(2, age_days=30), candidate(3, age_days=-5)]), NOW)
    assert values.tolist() == pytest.approx([1.0, 0.5, 1.0])


def test_equal_scores_put_the_newest_first() -> None:
    assert rank([candidate(1, age_days=5), candidate(2, age_days=1)], [1.0, 1.0]).order == [1, 0]


def test_request_weights_come_before_the_space_and_the_recipe() -> None:
    space = Weights(speaker=2.0, session=2.0)
    chosen = fusion.effective("some/model", space, Weights(speaker=0.0))
    assert (chosen.speaker, chosen.session, chosen.dense_turn) == (0.0, 2.0, 0.6)


def test_the_built_in_embedder_has_the_vote_it_earns() -> None:
    chosen = fusion.effective(LEXICAL_MODEL, Weights(), Weights())
    assert chosen.dense_turn == chosen.dense_before == fusion.LEXICAL_DENSE


def test_without_a_model_the_words_around_a_turn_count_for_more() -> None:
    lexical = fusion.effective(LEXICAL_MODEL, Weights(), Weights())
    modelled = fusion.effective("some/model", Weights(), Weights())
    assert lexical.lexical_wide is not None
    assert modelled.lexical_wide is not None
    assert lexical.lexical_wide > modelled.lexical_wide
    assert fusion.effective(LEXICAL_MODEL, Weights(lexical_wide=0.1), Weights()).lexical_wide == 0.1
