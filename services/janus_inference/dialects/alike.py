"""Events of a stream that differ in one text alone, read without parsing each of them.

Most of a stream is one event, said again and again around another piece of text. Once such an
event has been parsed, those that begin and end with the same bytes are known but for the text
between, and a chunk of fifty of them is taken apart by one search for what ends the one and begins
the next. Whatever is not exactly so is left to the parser, which decides in every case of doubt.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jiter

from janus_inference.dialects.json_text import NotJson, parse_object
from janus_inference.dialects.sse import MAX_PENDING_BYTES
from janus_inference.events import ProviderEvent

# Within a JSON string: what is not itself.
_SPECIAL = re.compile(rb'["\\\x00-\x1f]')
# Surrogates may come in halves, and NUL is not stored: the parser knows what to do.
_BY_NUMBER = b"\\u"
_PROBE = "\u2026probe"
# A server that says something else in every event is parsed; this often it is tried.
_TRIES = 4


class Alike:
    """The event that comes again and again in one stream, once it is known.

    ``learn`` it from one that was parsed and whose only effect was the event ``make(text)``; ``take``
    then reads those that follow.
    """

    def __init__(self) -> None:
        self._before = self._after = self._head = self._tail = self._between = b""
        self._make: Callable[[str], ProviderEvent]
        self._tries = _TRIES

    @property
    def is_known(self) -> bool:
        """Whether there is something that what follows may be like."""
        return bool(self._head)

    def wants(self, data: bytes) -> bool:
        """Whether it is worth while to learn from this event, which was parsed."""
        return self._tries > 0 and not (self._tail and data.startswith(self._before) and data.endswith(self._after))

    def learn(
        self,
        name: bytes,
        data: bytes,
        parsed: Mapping[str, Any],
        holder: dict[str, Any],
        key: str,
        make: Callable[[str], ProviderEvent],
    ) -> None:
        """See whether ``data`` can stand for its like.

        ``parsed`` is what it says; ``holder``, within it, has the text under ``key``, and is changed.
        """
        self._tries -= 1
        text = holder[key].encode()
        found = re.search(rb'"%b": ?"' % re.escape(key.encode()), data)
        if found is None or not data.startswith(text + b'"', found.end()):
            return
        before, after = data[: found.end()], data[found.end() + len(text) :]
        # That it is the text's place, and the only thing that changes with it, is seen by changing it.
        holder[key] = _PROBE
        try:
            if parse_object(before + _PROBE.encode() + after) != parsed:
                return
        except NotJson:
            return
        self._before, self._after = before, after
        self._head = (b"event: %b\n" % name if name else b"") + b"data: " + before
        self._tail = after + b"\n\n"
        self._between = self._tail + self._head
        self._make = make

    def forget(self) -> None:
        """What comes next belongs to another part, however much alike it is."""
        self._before = self._after = self._head = self._tail = self._between = b""

    def take(self, data: bytes, events: list[ProviderEvent]) -> bytes:
        """What is left after the events at the beginning that are alike; what they say is one event."""
        head = self._head
        if not head or not data.startswith(head) or len(data) > MAX_PENDING_BYTES:
            return data
        *texts, last = data[len(head) :].split(self._between)
        end, found, rest = last.partition(self._tail)
        if found:
            texts.append(end)
        elif texts:
            rest = head + last
        else:
            return data
        try:
            text = _joined(texts)
        except ValueError:
            return data
        self._tries = _TRIES
        if text:
            events.append(self._make(text))
        return rest


def _joined(texts: list[bytes]) -> str:
    """The text of several pieces of JSON strings. Raises ValueError for what the parser must see."""
    whole = texts[0] if len(texts) == 1 else b"".join(texts)
    if _SPECIAL.search(whole) is None:
        # Each piece must be whole characters, not only all of them together.
        return whole.decode() if whole.isascii() else "".join([text.decode() for text in texts])
    if _BY_NUMBER in whole:
        raise ValueError("numbered characters")
    return "".join([jiter.from_json(b'"%b"' % text) for text in texts])
