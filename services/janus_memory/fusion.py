"""Fusion of legs by standardised scores, with what a conversation adds to them.

score = Σ wᵢ·zᵢ / Σ wᵢ + speaker + session + recency + importance, where zᵢ is a
leg's score standardised over the candidates. The weights were measured on a
public benchmark of long conversations; a space or a request may override each.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from datetime import UTC, datetime
from math import sqrt
from typing import TYPE_CHECKING

from janus_memory.columns import Columns
from janus_memory.model import LEXICAL_MODEL, Detail, Weights
from janus_memory.text import words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RECIPE = Weights(
    lexical_turn=1.0,
    lexical_before=1.0,
    lexical_around=0.5,
    lexical_wide=0.3,
    dense_turn=0.6,
    dense_before=0.6,
    speaker=0.4,
    session=0.3,
    recency=0.0,
    importance=0.0,
)
# Vectors of the built-in embedder hold hardly anything that BM25 does not know
# better: they earn a vote on misspelt words, not the vote of a model.
LEXICAL_DENSE = 0.2
# What a turn is about is then seen from the words around it alone.
LEXICAL_WIDE = 0.5

LEGS = ("lexical_turn", "lexical_before", "lexical_around", "lexical_wide", "dense_turn", "dense_before")
HALF_LIFE_DAYS = 30.0
SESSION_BEST = 3


def effective(model: str, space: Weights, request: Weights) -> Weights:
    """The weights of a recall: the request's, else the space's, else the recipe's."""
    recipe = RECIPE
    if model == LEXICAL_MODEL:
        recipe = replace(recipe, dense_turn=LEXICAL_DENSE, dense_before=LEXICAL_DENSE, lexical_wide=LEXICAL_WIDE)
    chosen = {}
    for each in fields(Weights):
        values = (getattr(weights, each.name) for weights in (request, space, recipe))
        chosen[each.name] = next(value for value in values if value is not None)
    return Weights(**chosen)


class Ranking:
    """Candidates with their totals; ``order`` is best first, of equals the latest written."""

    def __init__(
        self,
        candidates: Columns,
        legs: "Mapping[str, NDArray[np.float64]]",
        weights: Weights,
        query: str,
        now: datetime,
    ) -> None:
        import numpy as np

        self._weights = weights
        self._raw: dict[str, NDArray[np.float64]] = {}
        self._z: dict[str, NDArray[np.float64]] = {}
        self._share: dict[str, NDArray[np.float64]] = {}
        total = np.zeros(len(candidates))
        weighing = sum(self._weight(leg) for leg in legs)
        for leg, raw in legs.items():
            z = standardised(raw)
            share = z * (self._weight(leg) / weighing) if weighing else np.zeros(len(candidates))
            self._note(leg, raw, z, share)
            total = total + share
        if self._weight("session"):
            lift = session_lift(candidates, total)
            total = total + self._bonus("session", lift)
        named = speaker_match(candidates, query)
        total = total + self._bonus("speaker", named)
        if self._weight("recency"):
            total = total + self._bonus("recency", recency(candidates, now))
        if self._weight("importance"):
            total = total + self._bonus("importance", candidates.importance)
        # What is equal but for rounding is shown as equal, so that the order is that of the scores.
        self.total = np.round(total, 9)
        self.order: list[int] = np.lexsort((-candidates.units, -self.total)).tolist()

    def details(self, row: int) -> tuple[Detail, ...]:
        """How a candidate's score came about; the contributions add up to it."""
        found = []
        for leg, raw in self._raw.items():
            better = int((raw > raw[row]).sum())
            in_leg = leg not in LEGS or raw[row] > 0 or leg.startswith("dense")
            found.append(
                Detail(
                    leg=leg,
                    raw=float(raw[row]),
                    standardised=float(self._z[leg][row]),
                    weight=self._weight(leg),
                    contribution=float(self._share[leg][row]),
                    rank=better + 1 if in_leg else 0,
                )
            )
        return tuple(found)

    def _weight(self, leg: str) -> float:
        return float(getattr(self._weights, leg))

    def _bonus(self, leg: str, raw: "NDArray[np.float64]") -> "NDArray[np.float64]":
        share = raw * self._weight(leg)
        self._note(leg, raw, raw, share)
        return share

    def _note(
        self, leg: str, raw: "NDArray[np.float64]", z: "NDArray[np.float64]", share: "NDArray[np.float64]"
    ) -> None:
        self._raw[leg], self._z[leg], self._share[leg] = raw, z, share


def standardised(raw: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """(x - mean) / deviation; all zero where the leg says the same of everybody."""
    import numpy as np

    if not len(raw):
        return np.zeros(0)
    centred = raw - raw.mean()
    deviation = sqrt((centred * centred).mean())
    if deviation < 1e-9:
        return np.zeros(len(raw))
    result: NDArray[np.float64] = centred / deviation
    return result


def session_lift(candidates: Columns, total: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """The mean of the three best scores of a candidate's session.

    A memory is of no session and stands alone.
    """
    import numpy as np

    if not len(candidates):
        return np.zeros(0)
    groups = candidates.sessions
    best_first = np.lexsort((-total, groups))
    ordered = groups[best_first]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    sizes = np.diff(starts, append=len(ordered))
    rank = np.arange(len(ordered)) - np.repeat(starts, sizes)
    best = np.where(rank < SESSION_BEST, total[best_first], 0.0)
    means = np.add.reduceat(best, starts) / np.minimum(sizes, SESSION_BEST)
    lift: NDArray[np.float64] = np.empty(len(candidates))
    lift[best_first] = np.repeat(means, sizes)
    return lift


def speaker_match(candidates: Columns, query: str) -> "NDArray[np.float64]":
    """1 where the query names the speaker: all words of the name, or its first."""
    import numpy as np

    asked = set(words(query))
    named: dict[str, float] = {}
    for speaker in set(candidates.speakers):
        name = words(speaker)
        named[speaker] = float(bool(name) and name[0] in asked)
    return np.fromiter(map(named.__getitem__, candidates.speakers), float, len(candidates))


def recency(candidates: Columns, now: datetime) -> "NDArray[np.float64]":
    """1 for now, halved every 30 days of age."""
    import numpy as np

    ages = (np.datetime64(now.astimezone(UTC).replace(tzinfo=None), "us") - candidates.occurred_at).astype(np.int64)
    result: NDArray[np.float64] = np.power(0.5, np.maximum(ages / 1_000_000, 0.0) / 86_400 / HALF_LIFE_DAYS)
    return result
