"""Events that are kept come back as they were, and nothing else is taken for events."""

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from janus_inference import events
from janus_inference.events import Cost, FinishReason, Numbered, Timings, TokenLogprob, Usage
from janus_inference.model import Citation, Opaque, ToolCall
from janus_inference.stored import ProtobufEvents
from janus_kit import errors
from janus_kit.rpc_errors import to_status

_CODEC = ProtobufEvents()
settings.register_profile("stored", deadline=None)
settings.load_profile("stored")

# What protobuf and a status can hold: no lone surrogates, no NUL in an error's text.
_text = st.text(st.characters(codec="utf-8"), max_size=40)
_plain = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=40)
_count = st.integers(0, 2**62)
_index = st.integers(0, 2**31 - 1)
_seconds = st.integers(0, 10**15).map(lambda nanoseconds: nanoseconds / 1e9)
_usage = st.builds(Usage, _count, _count, _count, _count, _count).flatmap(
    # Where nothing was counted nobody says who counted.
    lambda usage: st.just(usage) if usage == Usage() else st.sampled_from([usage, _estimated(usage)])
)
_cost = st.none() | st.builds(Cost, _count, _text)
_finite = st.floats(allow_nan=False)
_logprob = st.builds(TokenLogprob, _text, _finite, st.lists(st.tuples(_text, _finite), max_size=3).map(tuple))


def _estimated(usage: Usage) -> Usage:
    return Usage(
        usage.input_uncached_tokens,
        usage.cache_read_tokens,
        usage.cache_write_tokens,
        usage.output_tokens,
        usage.reasoning_tokens,
        estimated=True,
    )


_metadata = st.dictionaries(_plain, _plain, max_size=3)
_retry_after = st.none() | st.integers(0, 10**6).map(lambda milliseconds: milliseconds / 1000)
_error = st.one_of(
    st.builds(errors.InvalidArgument, _plain, _plain),
    st.builds(errors.FailedPrecondition, _plain, _plain, _metadata),
    st.builds(errors.Aborted, _plain, _plain, _metadata, _retry_after),
    st.builds(errors.AlreadyExists, _plain, _plain, _plain, _plain),
    st.builds(errors.Unauthenticated),
    st.builds(errors.PermissionDenied, _plain, _plain),
    st.builds(errors.NotFound, _plain, _plain),
    st.builds(errors.ResourceExhausted, _plain, _plain, _metadata, _retry_after, st.none() | st.tuples(_plain, _plain)),
    st.builds(errors.Unavailable, _plain, _plain, retry_after=_retry_after),
    st.builds(errors.DeadlineExceeded, _plain, _plain, _metadata, _retry_after),
    st.builds(errors.Cancelled),
    st.builds(errors.OutOfRange, _plain, _plain, _metadata),
    st.builds(errors.Unimplemented),
    st.builds(errors.DataLoss, _plain, _plain),
    st.builds(errors.Internal, _plain),
)
_reasoning = st.one_of(
    st.builds(events.ReasoningDelta, _index, text=_text),
    st.builds(events.ReasoningDelta, _index, summary=_text),
    st.builds(events.ReasoningDelta, _index, redacted=st.binary(max_size=40)),
)
_BY_KIND: dict[type, st.SearchStrategy[Any]] = {
    events.Started: st.builds(events.Started, _text, _text, _text, _index),
    events.RouteChanged: st.builds(events.RouteChanged, _text, _text, _text, _index),
    events.TextDelta: st.builds(events.TextDelta, _index, _text, st.lists(_logprob, max_size=3).map(tuple)),
    events.ReasoningDelta: _reasoning,
    events.ReasoningSignature: st.builds(events.ReasoningSignature, _index, st.binary(max_size=40), _text),
    events.ToolCallStarted: st.builds(events.ToolCallStarted, _index, _text, _text),
    events.ToolCallArguments: st.builds(events.ToolCallArguments, _index, _text),
    events.ToolCallCompleted: st.builds(
        events.ToolCallCompleted,
        _index,
        st.builds(ToolCall, _text, _text, _text),
        st.booleans(),
        st.booleans(),
        _text,
    ),
    events.CitationAdded: st.builds(
        events.CitationAdded,
        st.builds(Citation, _index, _index, _text, _text, _text, _index, issuer=_text, data=st.binary(max_size=16)),
    ),
    events.RefusalDelta: st.builds(events.RefusalDelta, _index, _text),
    events.OpaqueAdded: st.builds(events.OpaqueAdded, _index, st.builds(Opaque, _text, _text, st.binary(max_size=40))),
    events.UsageUpdated: st.builds(events.UsageUpdated, _usage, _cost),
    events.Finished: st.builds(
        events.Finished,
        st.sampled_from(FinishReason),
        _text,
        _usage,
        st.builds(Timings, _seconds, _seconds, _seconds),
        _text,
        _cost,
        st.booleans(),
    ),
    events.Failed: st.builds(events.Failed, _error, st.booleans(), st.booleans(), _usage, _cost),
}
_numbered = st.builds(Numbered, st.integers(1, 2**62), st.one_of(*_BY_KIND.values()))


def _comparable(numbered: Numbered) -> object:
    """Errors compare by identity; two that travel as the same status are the same."""
    event = numbered.event
    if not isinstance(event, events.Failed):
        return numbered
    error = event.error
    return (
        numbered.sequence,
        type(error),
        to_status(error),
        error.retry_after,
        (event.retryable, event.partial, event.usage, event.cost),
    )


def test_every_kind_of_event_is_tried() -> None:
    assert set(_BY_KIND) == set(events.Event.__args__)


@pytest.mark.parametrize("kind", list(_BY_KIND), ids=lambda kind: kind.__name__)
def test_an_event_of_each_kind_comes_back_as_it_was(kind: type) -> None:
    @given(_BY_KIND[kind])
    def comes_back(event: events.Event) -> None:
        kept = Numbered(7, event)
        assert [_comparable(each) for each in _CODEC.load(_CODEC.dump([kept]))] == [_comparable(kept)]

    comes_back()


@given(st.lists(_numbered, max_size=8))
def test_a_stream_comes_back_in_order(stream: list[Numbered]) -> None:
    assert list(map(_comparable, _CODEC.load(_CODEC.dump(stream)))) == list(map(_comparable, stream))


@given(st.binary(max_size=200))
@example(b"")
@example(b"\x02")
@example(b"\x01\xff\xff\xff\xff\xff\xff")
@example(b"\x01\x05ab")
@example(b"\x01\x00")
def test_what_is_no_stored_stream_is_refused_or_is_one(data: bytes) -> None:
    try:
        loaded = _CODEC.load(data)
    except ValueError:
        return
    assert all(numbered.sequence >= 1 for numbered in loaded)
    assert data[0] == 1


@pytest.mark.parametrize("data", [b"", b"\x02", b"\x01\xff\xff\xff\xff\xff\xff", b"\x01\x05ab", b"\x01\x00"])
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"event|version"):
        _CODEC.load(data)


@given(st.lists(_numbered, min_size=1, max_size=3), st.data())
def test_a_stream_that_was_cut_within_an_event_is_refused(stream: list[Numbered], data: st.DataObject) -> None:
    whole = _CODEC.dump(stream)
    borders = {len(_CODEC.dump(stream[:count])) for count in range(len(stream) + 1)}
    cut = data.draw(st.integers(1, len(whole) - 1).filter(lambda at: at not in borders))
    with pytest.raises(ValueError, match=r"event|length"):
        _CODEC.load(whole[:cut])
