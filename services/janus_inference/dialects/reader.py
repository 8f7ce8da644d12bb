"""How every dialect reads a stream: events until its end, or until something is wrong."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Protocol

from janus_inference.dialects.alike import Alike
from janus_inference.dialects.json_text import Halves, NotJson
from janus_inference.dialects.sse import EventTooLarge, SseSplitter
from janus_inference.events import ProviderEvent, Usage
from janus_inference.provider_errors import ProviderFailure, broken

# So many events of a chunk are read one by one, for what the others may be like.
_LOOKS = 8
# What looking into a document of an unexpected shape may raise.
WRONG_SHAPE = (NotJson, TypeError, AttributeError, KeyError, ValueError, IndexError)


class Reader(Protocol):
    """Turns one answer's bytes into events.

    ``feed`` takes what came, cut anywhere; ``close`` is called at the end of
    the stream. Neither raises: what was said before something went wrong is
    returned, and ``failure`` holds what did. ``body`` takes the place of both
    for a provider that answered with one JSON body, and raises ProviderFailure.
    ``whole`` is true once the answer's own end was seen. ``unknown`` counts the
    events of kinds that this version does not know, and skips. ``used`` is what
    was counted so far where a server counts as it goes on, which no event says
    before the end.
    """

    whole: bool
    failure: ProviderFailure | None
    unknown: int
    dialect: str

    def feed(self, chunk: bytes) -> list[ProviderEvent]: ...

    def close(self) -> list[ProviderEvent]: ...

    def body(self, data: bytes) -> list[ProviderEvent]: ...

    def used(self) -> Usage | None: ...


class StreamReader:
    """The part of a ``Reader`` that is the same for every dialect of server-sent events."""

    dialect = ""

    def __init__(self, provider: str) -> None:
        self.whole = False
        self.failure: ProviderFailure | None = None
        self.unknown = 0
        self._provider = provider
        self._sse = SseSplitter()
        self._alike = Alike()
        self._halves: Halves = {}

    def feed(self, chunk: bytes) -> list[ProviderEvent]:
        events: list[ProviderEvent] = []
        if self.whole or self.failure is not None:
            return events
        for _ in range(_LOOKS):
            if b"\n\n" not in chunk or self._halves or not self._sse.is_between_events:
                break
            chunk = self._alike.take(self._sse.recalled(chunk), events)
            if self._alike.is_known:
                break
            # Also of an answer that comes all at once: its first events are read one by one, until that is known.
            first, end, chunk = chunk.partition(b"\n\n")
            if not self._collect(self._sse.feed(first + end), events):
                return events
        if chunk:
            self._collect(self._sse.feed(chunk), events)
        return events

    def close(self) -> list[ProviderEvent]:
        if self.whole:
            return []
        events: list[ProviderEvent] = []
        if self.failure is None:
            self._collect(self._sse.close(), events)
        if self.failure is None and not self.whole:
            try:
                self._ended(events)
            except ProviderFailure as failure:
                self.failure = failure
        if self.failure is None and not self.whole:
            self.failure = self.too_short()
        return events

    def used(self) -> Usage | None:
        return None

    def too_short(self) -> ProviderFailure:
        """The failure that a stream without its end is."""
        return broken(self._provider, "the stream ended before the answer did")

    @abstractmethod
    def _event(self, name: bytes, data: bytes, events: list[ProviderEvent]) -> None:
        """Add what one event says. Sets ``whole`` at the end of the answer."""

    def _ended(self, events: list[ProviderEvent]) -> None:
        """The stream ended without saying so; a dialect may know better than to call it broken."""

    def _collect(self, found: Iterator[tuple[bytes, bytes]], events: list[ProviderEvent]) -> bool:
        """Add what these say; whether the answer goes on."""
        try:
            for name, data in found:
                self._event(name, data, events)
                if self.whole:
                    break
        except ProviderFailure as failure:
            self.failure = failure
        except EventTooLarge:
            self.failure = broken(self._provider, "an event is larger than 4 MiB")
        except WRONG_SHAPE:
            # Whatever shape it has, it is not one that this dialect knows.
            self.failure = broken(self._provider, "an event is not of the expected form")
        return not self.whole and self.failure is None
