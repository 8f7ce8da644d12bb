"""Joining deltas changes their number and nothing else."""

from collections import defaultdict
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from janus_inference.coalesce import coalesced
from janus_inference.events import (
    FinishReason,
    ProviderEvent,
    ReasoningDelta,
    RefusalDelta,
    Stopped,
    TextDelta,
    ToolCallArguments,
    Usage,
    UsageUpdated,
)

parts = st.integers(0, 2)
text = st.text(min_size=1, max_size=5)
any_event: st.SearchStrategy[ProviderEvent] = st.one_of(
    st.builds(TextDelta, parts, text),
    st.builds(TextDelta, parts, text),
    st.builds(RefusalDelta, parts, text),
    st.builds(ToolCallArguments, parts, text),
    st.builds(lambda part, said: ReasoningDelta(part, text=said), parts, text),
    st.builds(lambda part, said: ReasoningDelta(part, summary=said), parts, text),
    st.builds(lambda part, data: ReasoningDelta(part, redacted=data), parts, st.binary(min_size=1)),
    st.just(UsageUpdated(Usage(1))),
    st.just(Stopped(FinishReason.STOP, "stop")),
)


def content(events: Iterable[ProviderEvent]) -> dict[object, str]:
    said: defaultdict[object, str] = defaultdict(str)
    for event in events:
        match event:
            case TextDelta() | RefusalDelta():
                said[type(event), event.part_index] += event.text
            case ToolCallArguments():
                said[type(event), event.part_index] += event.fragment
            case ReasoningDelta():
                form = "text" if event.text else "summary" if event.summary else "redacted"
                said[form, event.part_index] += str(event.text or event.summary or event.redacted)
            case _:
                said[event] += "."
    return said


@given(st.lists(any_event, min_size=1, max_size=30))
def test_the_same_is_said_in_the_same_order(batch: list[ProviderEvent]) -> None:
    joined = list(coalesced(batch))
    assert len(joined) <= len(batch)
    usage = UsageUpdated(Usage(1))
    said, wanted = content(joined), content(batch)
    said.pop(usage, None), wanted.pop(usage, None)  # the last of several replaces the others
    assert said == wanted
    runs = [key for i, key in enumerate(map(_kind, batch)) if i == 0 or key != _kind(batch[i - 1])]
    kept = [key for i, key in enumerate(map(_kind, joined)) if i == 0 or key != _kind(joined[i - 1])]
    assert kept == runs


def _kind(event: ProviderEvent) -> object:
    return type(event), getattr(event, "part_index", None)


def test_one_event_goes_through_untouched() -> None:
    only = TextDelta(0, "word")
    assert next(iter(coalesced([only]))) is only


def test_a_burst_of_text_becomes_one_event() -> None:
    burst = [TextDelta(0, word) for word in ("a", "b", "c")]
    assert list(coalesced(burst)) == [TextDelta(0, "abc")]
