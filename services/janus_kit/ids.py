"""Ids: how Janus makes its own and which ones it accepts from callers."""

import re
import secrets
import threading
import time

from janus_kit.errors import InvalidArgument

MAX_ID_CHARS = 128
ID_RULE = (
    "must be 1 to 128 characters, begin with a letter or digit, and hold only letters, digits, '.', '_', ':' and '-'"
)

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}", re.ASCII)
# Crockford's base 32 in lower case: its order as text is its order as a number.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
# Two digits at a time: ids are made by the dozen in a call.
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_RANDOM_BITS = 80
_RANDOM_MASK = (1 << _RANDOM_BITS) - 1


class _Sequence:
    """130-bit numbers, 48 bits of milliseconds first, that never go back.

    Two ids of one process keep their order even within a millisecond or when
    the wall clock steps back: the last number plus one is used then.
    """

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()

    def next(self) -> int:
        fresh = (time.time_ns() // 1_000_000 << _RANDOM_BITS) | secrets.randbits(_RANDOM_BITS)
        with self._lock:
            # The low bits start random, so "plus one" does not make ids guessable
            # across processes; ids are names here, never credentials.
            self._last = fresh if fresh >> _RANDOM_BITS > self._last >> _RANDOM_BITS else self._last + 1
            return self._last


_sequence = _Sequence()


def new_id(prefix: str) -> str:
    """A new id such as ``msg_01j9…``: 26 characters after the prefix, time-ordered."""
    number = _sequence.next()
    return f"{prefix}_{''.join([_PAIRS[number >> place & 1023] for place in range(120, -1, -10)])}"


def is_id(text: str) -> bool:
    """Whether the text is acceptable as an id or a name."""
    return _ID.fullmatch(text) is not None


def require_id(field: str, text: str) -> str:
    """The text itself. Raises InvalidArgument naming ``field`` when it is no id."""
    if not is_id(text):
        raise InvalidArgument(field, ID_RULE)
    return text
