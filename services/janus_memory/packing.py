"""Hits as context for a prompt, within a token budget."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from janus_memory.model import Hit, Span, Turn
from janus_memory.text import date_text, line, terms
from janus_memory.window import estimate_tokens

_ALIKE = 0.9
_SHORTEST = 4
"""Distinct terms from which on two texts can be near-duplicates; "yes" and "Yes!" may both matter."""


@dataclass
class _Piece:
    hit: Hit
    text: str
    tokens: int


def pack(hits: Sequence[Hit], max_tokens: int) -> tuple[Span, ...]:
    """Spans in the order they should be read: by time.

    The best hits that fit are taken whole, a near-duplicate of a better one is
    dropped, and turns next to each other become one span under one date.
    """
    pieces: list[_Piece] = []
    seen: list[frozenset[str]] = []
    used = 0
    for hit in hits:
        text = _text(hit)
        words = frozenset(terms(text))
        if any(_alike(words, other) for other in seen):
            continue
        tokens = estimate_tokens(text) + estimate_tokens(f"[{date_text(_when(hit))}]") + 1
        if used + tokens > max_tokens:
            continue
        used += tokens
        seen.append(words)
        pieces.append(_Piece(hit, text, tokens))
    return tuple(sorted(map(_span, _runs(pieces)), key=lambda span: span.occurred_at))


def _runs(pieces: Sequence[_Piece]) -> list[list[_Piece]]:
    """Pieces that are neighbours in a session, together; all others alone."""
    runs: list[list[_Piece]] = []
    turns = [piece for piece in pieces if isinstance(piece.hit.record, Turn)]
    turns.sort(key=lambda piece: _place(piece))
    for piece in turns:
        thread, session, position = _place(piece)
        if runs and _place(runs[-1][-1]) == (thread, session, position - 1):
            runs[-1].append(piece)
        else:
            runs.append([piece])
    runs.extend([piece] for piece in pieces if not isinstance(piece.hit.record, Turn))
    return runs


def _place(piece: _Piece) -> tuple[str, int, int]:
    record = piece.hit.record
    assert isinstance(record, Turn)
    return record.scope.thread, record.session, record.position


def _span(run: Sequence[_Piece]) -> Span:
    when = min(_when(piece.hit) for piece in run)
    return Span(
        text="\n".join([f"[{date_text(when)}]", *(piece.text for piece in run)]),
        record_ids=tuple(piece.hit.record.id for piece in run),
        occurred_at=when,
        score=max(piece.hit.score for piece in run),
        tokens=sum(piece.tokens for piece in run),
    )


def _text(hit: Hit) -> str:
    record = hit.record
    return line(record.speaker, record.text) if isinstance(record, Turn) else record.text


def _when(hit: Hit) -> datetime:
    record = hit.record
    return record.occurred_at if isinstance(record, Turn) else record.valid_from or record.recorded_at


def _alike(left: frozenset[str], right: frozenset[str]) -> bool:
    if min(len(left), len(right)) < _SHORTEST:
        return False
    return len(left & right) >= _ALIKE * len(left | right)
