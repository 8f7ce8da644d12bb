"""Cutting a document into chunks that can be read by themselves."""

import re
import unicodedata
from collections.abc import Iterator

DEFAULT_CHUNK = 1_200
"""Characters of a chunk when nobody says."""

# Where to cut, best first: between paragraphs, lines, sentences, words.
_BREAKS = tuple(
    map(
        re.compile,
        (r"\n[^\S\n]*\n\s*", r"\n\s*", r"(?<=[.!?\u2026])[\"'\u201d\u2019)\]]*\s+|(?<=[\u3002\uff01\uff1f])", r"\s+"),
    )
)
# A worse break farther on is better than a good one that leaves a crumb.
_LEAST_SHARE = 3
_JOINER = "\u200d"


def chunks(text: str, size: int) -> Iterator[str]:
    """Pieces of at most ``size`` characters, in order, which hold all of the text but for white space at their edges.

    Cut between paragraphs where that leaves no crumbs, else between lines,
    sentences or words, else within a word; never within what is seen as one
    character, unless that alone is longer than a chunk.
    """
    at = 0
    while at < len(text):
        end = len(text) if len(text) - at <= size else _cut(text, at, at + size)
        piece = text[at:end].strip()
        if piece:
            yield piece
        at = end


def _cut(text: str, start: int, limit: int) -> int:
    """Where to end a chunk that begins at ``start``: after it and at ``limit`` at most."""
    least = start + (limit - start) // _LEAST_SHARE
    for pattern in _BREAKS:
        # The white space itself may be beyond the limit: it is stripped.
        ends = (found.end() for found in pattern.finditer(text, least, limit + 1))
        fitting = [end for end in ends if end <= limit or text[limit:end].isspace()]
        if fitting and fitting[-1] > start:
            return fitting[-1]
    at = limit
    while at > start and _is_within(text, start, at):
        at -= 1
    return at if at > start else limit


def _is_within(text: str, start: int, at: int) -> bool:
    """Whether a cut at ``at`` would part what is seen as one character; there is none at ``start``."""
    before, after = text[at - 1], text[at]
    if unicodedata.category(after) in {"Mn", "Mc", "Me"} or _JOINER in (before, after):
        return True
    if "\U0001f3fb" <= after <= "\U0001f3ff":  # the skin of the emoji before
        return True
    if _is_flag_letter(before) and _is_flag_letter(after):
        # Flags are pairs of letters: the cut is within one if an odd number of letters stands before it.
        first = at
        while first > start and _is_flag_letter(text[first - 1]):
            first -= 1
        return (at - first) % 2 == 1
    return _is_jamo(before) and _is_jamo(after)


def _is_flag_letter(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _is_jamo(character: str) -> bool:
    return "\u1100" <= character <= "\u11ff"
