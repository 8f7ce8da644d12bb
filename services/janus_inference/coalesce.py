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


def coalesced(batch: Sequence[ProviderEvent]) -> Iterator[ProviderEvent]:
    """The same batch with neighbouring deltas of one part joined."""
    if len(batch) == 1:
        yield batch[0]
        return
    # At most one of the two waits: a run of text, which is the common case and
    # joined once at its end, or a single event that its neighbour may join.
    texts: list[str] = []
    part = -1
    waiting: ProviderEvent | None = None
    for event in batch:
        if isinstance(event, TextDelta) and not event.logprobs:
            if texts and event.part_index == part:
                texts.append(event.text)
                continue
            if waiting is not None:
                yield waiting
                waiting = None
            if texts:
                yield TextDelta(part, "".join(texts))
            texts, part = [event.text], event.part_index
            continue
        if texts:
            yield TextDelta(part, "".join(texts))
            texts = []
        if waiting is not None:
            joined = _joined(waiting, event)
            if joined is not None:
                waiting = joined
                continue
            yield waiting
        waiting = event
    if texts:
        yield TextDelta(part, "".join(texts))
    if waiting is not None:
        yield waiting


def _joined(left: ProviderEvent, right: ProviderEvent) -> ProviderEvent | None:
    """Two neighbours as one event; None when they do not belong together."""
    match left, right:
        case UsageUpdated(), UsageUpdated():
            return right
        case ToolCallArguments(), ToolCallArguments() if left.part_index == right.part_index:
            return ToolCallArguments(left.part_index, left.fragment + right.fragment)
        case RefusalDelta(), RefusalDelta() if left.part_index == right.part_index:
            return RefusalDelta(left.part_index, left.text + right.text)
        case ReasoningDelta(), ReasoningDelta() if left.part_index == right.part_index:
            return _thought(left, right)
    return None


def _thought(left: ReasoningDelta, right: ReasoningDelta) -> ReasoningDelta | None:
    if left.text is not None and right.text is not None:
        return ReasoningDelta(left.part_index, text=left.text + right.text)
    if left.summary is not None and right.summary is not None:
        return ReasoningDelta(left.part_index, summary=left.summary + right.summary)
    return None
