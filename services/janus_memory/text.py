"""From text to terms: what the lexical leg indexes and scores.

Pure and deterministic: the same text gives the same terms on every platform,
since they are stored. A change here needs a reindex, so it needs a new name of
the recipe as well.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache

INDEXED_CHARS = 32_768
"""Characters of a record that are searched; the rest is stored and shown only.

Well below what a tsvector holds, also when every pair of characters is a term.
"""

LONG_TEXT = 4_000
"""Characters from which on cutting a text into terms takes a noticeable time."""

_MAX_TERM = 64
_HASH_BYTES = 4

# Words that say nothing about what a text is about.
_STOP = frozenset(
    """a about after all also am an and any are as at be because been before being but by can could
    d did do does doing don for from further had has have having he her here hers him his how i if in
    into is it its just ll m me more most my no nor not now of off on once only or other our out over
    own re s same she should so some such t than that the their them then there these they this those
    through to too under until up ve very was we were what when where which while who whom why will
    with would you your""".split()  # noqa: SIM905 - a list of this length is not easier to read
)
_SUFFIXES = (
    ("sses", "ss"), ("ies", "y"), ("ing", ""), ("edly", ""), ("ed", ""), ("ly", ""), ("es", ""), ("s", ""),
)  # fmt: skip
_ASCII_WORD = re.compile(r"[a-z0-9]+")
_WORD = re.compile(r"[^\W_]+")
_ACCENTS = re.compile("[\u0300-\u036f]")
_APOSTROPHES = str.maketrans("", "", "'\u2019\u02bc")
# Scripts written without spaces: a run of them is cut into pairs of characters.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)
_MONTHS = (
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
)  # fmt: skip
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


def words(text: str) -> list[str]:
    """Lower-case words without accents and apostrophes, in order, stop words included."""
    text = text[:INDEXED_CHARS]
    if text.isascii():
        return _ASCII_WORD.findall(text.lower().replace("'", ""))
    folded = unicodedata.normalize("NFKC", text).casefold().translate(_APOSTROPHES)
    bare = unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFD", folded)))
    found: list[str] = []
    for word in _WORD.findall(bare):
        if word.isascii():
            found.append(word)
        else:
            found.extend(_cut(word))
    return found


def _cut(word: str) -> Iterable[str]:
    """A word, with every run of an unspaced script as overlapping pairs of characters."""
    at = 0
    for run in _UNSPACED.finditer(word):
        if run.start() > at:
            yield word[at : run.start()]
        characters = run.group()
        if len(characters) == 1:
            yield characters
        else:
            yield from (characters[i : i + 2] for i in range(len(characters) - 1))
        at = run.end()
    if at < len(word):
        yield word[at:]


@lru_cache(maxsize=65_536)
def _term(word: str) -> str:
    """A word's stem; empty for a stop word."""
    return "" if word in _STOP else stem(word)[:_MAX_TERM]


def stem(word: str) -> str:
    """Strips plural, -ing, -ed and -ly of English words; leaves others nearly alone, and numbers and codes as they are.

    Deliberately small: conversation is short and informal, and a stemmer that
    is wrong rarely beats one that is thorough.
    """
    if len(word) <= 3 or not word.isascii():
        return word
    for suffix, put in _SUFFIXES:
        if word.endswith(suffix) and not word.endswith("ss") and len(word) - len(suffix) + len(put) >= 3:
            word = word[: len(word) - len(suffix)] + put
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "lsz0123456789":
        word = word[:-1]
    return word[:-1] if len(word) > 3 and word.endswith("e") else word


def terms(text: str) -> list[str]:
    """Terms of a text, in order, repeats included, stop words left out."""
    return [term for word in words(text) if (term := _term(word))]


@lru_cache(maxsize=65_536)
def term_hash(term: str) -> bytes:
    """Four bytes that stand for a term in a bag; equal on every platform."""
    return hashlib.blake2b(term.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).digest()


def bag(line_terms: Iterable[str]) -> bytes:
    """A line's terms as a sequence of hashes; its length is 4 bytes a term."""
    return b"".join(map(term_hash, line_terms))


def line(speaker: str, text: str) -> str:
    """A record as it is searched: who said it, and what."""
    return f"{speaker}: {text}" if speaker else text


def date_text(when: datetime) -> str:
    """A session's date as a part of the text, in UTC: ``8 May 2023``."""
    return f"{when.day} {_MONTHS[when.month - 1].capitalize()} {when.year}"


DATE_TERMS = 3
"""Terms of every date: day, month and year."""
_MONTH_TERMS = frozenset(map(stem, _MONTHS))


@lru_cache(maxsize=8_192)
def _date_terms(year: int, month: int, day: int) -> tuple[str, ...]:
    return tuple(terms(f"{day} {_MONTHS[month - 1]} {year}"))


def date_terms(when: datetime) -> tuple[str, ...]:
    """Terms of ``date_text``."""
    return _date_terms(when.year, when.month, when.day)


def may_be_date(term: str) -> bool:
    """Whether a term can be one of a date's."""
    return term.isdigit() or term in _MONTH_TERMS


def lexeme(space_no: int, term: str) -> str:
    """A term as it is in the inverted index: under the number of its space."""
    return f"{space_no:x}:{term}"
