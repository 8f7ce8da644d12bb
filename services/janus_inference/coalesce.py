"""Fewer, larger events: deltas that wait anyway travel together.

A batch holds what a provider said since it was last read. While the consumer
keeps up, that is one token and it goes out at once; when it does not, or the
provider sends faster than one message a token is worth, neighbours of the same
part are joined. Nothing is ever held back to wait for more.
"""

from collections.abc import Iterator, Sequence

from janus_inference.events import (
    ProviderEvent,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    ToolCallArguments,
    UsageUpdated,
)

# Of so many events what can be joined takes no more room than its text.
_WORTH_JOINING = 1024


def coalesced(batch: Sequence[ProviderEvent]) -> Iterator[ProviderEvent]:
    """The same batch with neighbouring deltas of one part joined."""
    if len(batch) == 1:
        yield batch[0]
        return
    # At most one of the two waits: a run of text, which is the common case, or
    # other events that are one once no more of them come.
    texts: list[str] = []
    part = -1
    waiting: list[ProviderEvent] = []
    for event in batch:
        if isinstance(event, TextDelta) and not event.logprobs:
            if texts and event.part_index == part:
                texts.append(event.text)
                continue
            if waiting:
                yield _joined(waiting)
                waiting = []
            if texts:
                yield TextDelta(part, "".join(texts))
            texts, part = [event.text], event.part_index
            continue
        if texts:
            yield TextDelta(part, "".join(texts))
            texts = []
        if waiting and not _belong_together(waiting[-1], event):
            yield _joined(waiting)
            waiting = []
        waiting.append(event)
    if texts:
        yield TextDelta(part, "".join(texts))
    if waiting:
        yield _joined(waiting)


class Joined:
    """Events that are held, in as little room as they need; to go through them gives them ``coalesced``."""

    def __init__(self) -> None:
        self._joined: list[ProviderEvent] = []
        self._new: list[ProviderEvent] = []

    def add(self, event: ProviderEvent) -> None:
        self._new.append(event)
        if len(self._new) >= _WORTH_JOINING:
            self._joined += coalesced(self._new)
            self._new.clear()

    def __iter__(self) -> Iterator[ProviderEvent]:
        return coalesced([*self._joined, *self._new])


def _belong_together(left: ProviderEvent, right: ProviderEvent) -> bool:
    """Whether two neighbours are one event."""
    match left, right:
        case UsageUpdated(), UsageUpdated():
            return True
        case ToolCallArguments(), ToolCallArguments():
            return left.part_index == right.part_index
        case RefusalDelta(), RefusalDelta():
            return left.part_index == right.part_index
        case ReasoningDelta(redacted=None), ReasoningDelta(redacted=None):
            return left.part_index == right.part_index and (left.text is None) == (right.text is None)
    return False


def _joined(events: Sequence[ProviderEvent]) -> ProviderEvent:
    """Events that belong together as one."""
    last = events[-1]
    if len(events) == 1:
        return last
    match last:
        case ToolCallArguments(part_index=part):
            return ToolCallArguments(
                part, "".join(each.fragment for each in events if isinstance(each, ToolCallArguments))
            )
        case RefusalDelta(part_index=part):
            return RefusalDelta(part, "".join(each.text for each in events if isinstance(each, RefusalDelta)))
        case ReasoningDelta(part_index=part, text=text):
            thoughts = [each for each in events if isinstance(each, ReasoningDelta)]
            if text is not None:
                return ReasoningDelta(part, text="".join(each.text or "" for each in thoughts))
            return ReasoningDelta(part, summary="".join(each.summary or "" for each in thoughts))
    return last  # usage, of which the last counts
