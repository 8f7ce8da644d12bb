"""What was found as context for a prompt, within a token budget: first the hits, then the turns beside them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from janus_memory.model import ContextTurn, Hit, Memory, Span, Turn
from janus_memory.text import date_text, line, terms
from janus_memory.window import estimate_tokens

_ALIKE = 0.9
_SHORTEST = 4
"""Distinct terms from which on two texts can be near-duplicates; "yes" and "Yes!" may both matter."""
_MOST_BESIDE = 256
"""Sources that are looked up for one answer, and turns around others: those of the best hits."""
_LEAST_TOKENS = 5
"""A date and a word: with less room there is nothing to look for."""
_BYTES_A_TOKEN = 4
"""No text has more, as tokens are estimated."""

# Thread, session and position of a turn.
_Place = tuple[str, int, int]


@dataclass(frozen=True)
class _Piece:
    """A record that is shown. ``score``: None for what was not found itself.

    ``anchor`` is the number of the memory that a source was looked up for, best first.
    """

    id: str
    text: str
    when: datetime
    tokens: int
    score: float | None = None
    anchor: int = 0


class Packing:
    """The best hits that fit, whole; a near-duplicate of a better one is dropped.

    What room they leave is for turns beside them: those that memories rest on
    (``sources``), and those around turns (``around``). So no hit is ever
    displaced by what was not found.
    """

    def __init__(self, hits: Sequence[Hit], max_tokens: int) -> None:
        self._left = max_tokens
        self._seen: dict[str, list[frozenset[str]]] = {}
        self._turns: dict[_Place, _Piece] = {}
        self._found: list[_Place] = []
        self._memories: list[tuple[Memory, _Piece]] = []
        self._cited: dict[tuple[str, str], int] = {}
        for hit in hits:
            record = hit.record
            if isinstance(record, Turn):
                if self._take_turn(record, hit.score):
                    self._found.append(_place(record))
            elif piece := self._fitting(record.id, record.text, record.valid_from or record.recorded_at, hit.score):
                self._memories.append((record, piece))

    @property
    def most_bytes(self) -> int:
        """The longest text that there is room for."""
        return self._left * _BYTES_A_TOKEN

    def sources(self) -> list[tuple[str, str]]:
        """(thread, id) of turns that the memories rest on, best first. An empty thread: it is not known."""
        if self._left < _LEAST_TOKENS:
            return []
        cited: dict[tuple[str, str], int] = {}
        for number, (memory, _) in enumerate(self._memories):
            for source in json.loads(memory.provenance_json):
                if "message_id" in source:
                    cited.setdefault((memory.scope.thread, source["message_id"]), number)
        self._cited = dict(islice(cited.items(), _MOST_BESIDE))
        return list(self._cited)

    def add_sources(self, turns: Mapping[tuple[str, str], ContextTurn]) -> None:
        """Show turns of ``sources``, as far as there is room."""
        for source, number in self._cited.items():
            if source in turns and _place(turns[source]) not in self._turns:
                self._take_turn(turns[source], None, number)

    def around(self, reach: int) -> list[tuple[str, int, int]]:
        """(thread, first position, last position) around each turn that was found, the best first."""
        if not reach or self._left < _LEAST_TOKENS:
            return []
        best = self._found[: _MOST_BESIDE // (2 * reach)]
        return [(thread, position - reach, position + reach) for thread, _, position in best]

    def add_around(self, turns: Sequence[ContextTurn], reach: int) -> None:
        """Show turns of ``around``, as far as there is room: the nearest of the best first.

        Each is next to one that is shown, in its session.
        """
        by_place = {_place(turn): turn for turn in turns}
        ends = [(place, step) for place in self._found for step in (-1, 1)]
        for distance in range(1, reach + 1):
            ends = [(place, step) for place, step in ends if self._reaches(place, step * distance, by_place)]

    def _reaches(self, place: _Place, steps: int, turns: Mapping[_Place, ContextTurn]) -> bool:
        thread, session, position = place
        there = (thread, session, position + steps)
        return there in self._turns or (there in turns and self._take_turn(turns[there], None))

    def spans(self) -> tuple[Span, ...]:
        """Spans in the order they should be read: by time.

        Turns next to each other are one span under one date. A memory is one
        with the turns that it rests on, unless they are next to one that was found.
        """
        spans: list[Span] = []
        beneath: dict[int, list[list[_Piece]]] = {}
        for run in self._runs():
            if any(piece.score is not None for piece in run):
                spans.append(_span([run]))
            else:
                beneath.setdefault(min(piece.anchor for piece in run), []).append(run)
        for number, (_, piece) in enumerate(self._memories):
            spans.append(_span([[piece], *sorted(beneath.get(number, ()), key=lambda run: run[0].when)]))
        return tuple(sorted(spans, key=lambda span: span.occurred_at))

    def _runs(self) -> list[list[_Piece]]:
        """Turns that are neighbours in a session, together."""
        runs: list[list[_Piece]] = []
        before: _Place | None = None
        for place in sorted(self._turns):
            thread, session, position = place
            if before == (thread, session, position - 1):
                runs[-1].append(self._turns[place])
            else:
                runs.append([self._turns[place]])
            before = place
        return runs

    def _take_turn(self, turn: Turn | ContextTurn, score: float | None, anchor: int = 0) -> bool:
        piece = self._fitting(turn.id, line(turn.speaker, turn.text), turn.occurred_at, score, anchor)
        if piece is None:
            return False
        self._turns[_place(turn)] = piece
        return True

    def _fitting(
        self, record_id: str, text: str, when: datetime, score: float | None, anchor: int = 0
    ) -> _Piece | None:
        """A piece that there is room for, which is then taken; None when there is none, or it says nothing new."""
        words = frozenset(terms(text))
        marks = _marks(words)
        if any(_alike(words, other) for mark in marks for other in self._seen.get(mark, ())):
            return None
        tokens = estimate_tokens(text) + estimate_tokens(f"[{date_text(when)}]") + 1
        if tokens > self._left:
            return None
        self._left -= tokens
        for mark in marks:
            self._seen.setdefault(mark, []).append(words)
        return _Piece(record_id, text, when, tokens, score, anchor)


def _place(turn: Turn | ContextTurn) -> _Place:
    thread = turn.scope.thread if isinstance(turn, Turn) else turn.thread
    return thread, turn.session, turn.position


def _span(runs: Sequence[Sequence[_Piece]]) -> Span:
    """Runs of pieces, each under its date; one that is of the date before goes without."""
    lines: list[str] = []
    date = ""
    for run in runs:
        first = date_text(min(piece.when for piece in run))
        if first != date:
            lines.append(f"[{first}]")
        date = first
        lines.extend(piece.text for piece in run)
    pieces = [piece for run in runs for piece in run]
    return Span(
        text="\n".join(lines),
        record_ids=tuple(piece.id for piece in pieces),
        context_ids=tuple(piece.id for piece in pieces if piece.score is None),
        occurred_at=min(piece.when for piece in pieces),
        score=max(piece.score for piece in pieces if piece.score is not None),
        tokens=sum(piece.tokens for piece in pieces),
    )


def _marks(words: frozenset[str]) -> list[str]:
    """Terms of which two near-duplicates share one, so that a text is compared with few others.

    So many first terms, in one order for all texts, that who has none of them
    lacks too many. Long terms first: few texts have those.
    """
    if len(words) < _SHORTEST:
        return []
    return sorted(words, key=lambda term: (-len(term), term))[: len(words) - int(_ALIKE * len(words)) + 1]


def _alike(left: frozenset[str], right: frozenset[str]) -> bool:
    return len(left & right) >= _ALIKE * len(left | right)
