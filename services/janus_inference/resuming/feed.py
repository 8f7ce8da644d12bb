"""Fan-out within a process: one source of a generation's events, any number of readers.

Only events that are in the replay go through a feed. Every reader has a bounded
buffer; one that reads too slowly loses its buffer, not events: it catches up
from the replay and joins again, and neither the source nor anybody else notices.
"""

import asyncio
from collections.abc import Sequence

from janus_inference.events import Failed, Finished, Numbered
from janus_kit.errors import JanusError

# Events held for one reader.
BUFFER = 1_024


def is_terminal(numbered: Numbered) -> bool:
    """Whether nothing comes after it."""
    return isinstance(numbered.event, Finished | Failed)


class Subscription:
    """One reader's place at a feed; what was published before ``joined_at``, included, is in the replay."""

    def __init__(self, joined_at: int) -> None:
        self.joined_at = joined_at
        self._waiting: list[Numbered] = []
        self._must_look = False
        self._error: JanusError | None = None
        self._wake = asyncio.Event()

    def push(self, events: Sequence[Numbered]) -> None:
        """Never blocks: what does not fit sends the reader to the replay."""
        if self._must_look:
            return
        if len(self._waiting) + len(events) > BUFFER:
            self.look_again()
            return
        self._waiting.extend(events)
        self._wake.set()

    def look_again(self) -> None:
        """Have the reader catch up from the replay."""
        self._must_look = True
        self._waiting.clear()
        self._wake.set()

    def fail(self, error: JanusError) -> None:
        """No more will come; the reader still gets what is waiting."""
        self._error = error
        self._wake.set()

    async def next(self) -> Sequence[Numbered] | None:
        """What has come; None when the reader must look again. Raises the error that ended the feed."""
        while True:
            await self._wake.wait()
            if self._must_look:
                return None
            if self._waiting:
                waiting, self._waiting = self._waiting, []
                return waiting
            if self._error is not None:
                raise self._error.with_traceback(None)
            self._wake.clear()


class Feed:
    """A generation's events as they come into this process.

    ``published`` is the last sequence that did; ``has_ended``: it was the terminal one.
    """

    def __init__(self, published: int = 0) -> None:
        self.published = published
        self.has_ended = False
        self.subscribers: set[Subscription] = set()
        self._error: JanusError | None = None

    def join(self) -> Subscription:
        subscription = Subscription(self.published)
        if self._error is not None:
            subscription.fail(self._error)
        self.subscribers.add(subscription)
        return subscription

    def leave(self, subscription: Subscription) -> None:
        self.subscribers.discard(subscription)

    def push(self, events: Sequence[Numbered]) -> None:
        """Give events to all readers; they are in the replay."""
        if not events:
            return
        self.published = events[-1].sequence
        self.has_ended = is_terminal(events[-1])
        for subscriber in tuple(self.subscribers):
            subscriber.push(events)

    def look_again(self) -> None:
        """This is not the source any more: everybody finds another."""
        for subscriber in tuple(self.subscribers):
            subscriber.look_again()

    def fail(self, error: JanusError) -> None:
        """The source broke, and with it every stream that is read here."""
        self._error = error
        for subscriber in tuple(self.subscribers):
            subscriber.fail(error)
