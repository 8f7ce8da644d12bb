"""Events as bytes, for what is kept of them: replays, stored answers, the response cache.

The messages that travel are what is stored, so that a replay says what was
sent. A text of events is one byte with the version of this format, then each
event as its length (a varint) and a ``GenerationEvent``. ``load`` takes only
what ``dump`` could have written: anything else is a ValueError, which readers
treat as something that a newer version wrote.
"""

from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError

from janus_api.content.v1 import message_pb2 as content
from janus_api.content.v1 import usage_pb2
from janus_api.inference.v1 import event_pb2 as pb
from janus_inference import events
from janus_inference.encode import event_to
from janus_inference.events import Cost, Event, FinishReason, Numbered, Timings, TokenLogprob, Usage
from janus_inference.model import Citation, Opaque, ToolCall
from janus_kit.rpc_errors import from_status

_VERSION = 1
_LONGEST_VARINT = 5

_REASONS: dict[int, FinishReason] = {
    pb.FINISH_REASON_STOP: FinishReason.STOP,
    pb.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    pb.FINISH_REASON_TOOL_CALLS: FinishReason.TOOL_CALLS,
    pb.FINISH_REASON_CONTENT_FILTER: FinishReason.CONTENT_FILTER,
    pb.FINISH_REASON_REFUSAL: FinishReason.REFUSAL,
    pb.FINISH_REASON_STOP_SEQUENCE: FinishReason.STOP_SEQUENCE,
    pb.FINISH_REASON_PAUSE: FinishReason.PAUSE,
    pb.FINISH_REASON_OTHER: FinishReason.OTHER,
}


class ProtobufEvents:
    """The codec of ``ports.EventCodec``, in protobuf."""

    def dump(self, events: Sequence[Numbered]) -> bytes:
        out = bytearray((_VERSION,))
        for numbered in events:
            data = event_to(numbered).SerializeToString()
            size = len(data)
            while size > 0x7F:
                out.append(size & 0x7F | 0x80)
                size >>= 7
            out.append(size)
            out += data
        return bytes(out)

    def joined(self, dumps: Sequence[bytes]) -> bytes:
        return bytes((_VERSION,)) + b"".join([dump[1:] for dump in dumps])

    def load(self, data: bytes) -> list[Numbered]:
        """The events. Raises ValueError for what ``dump`` did not write."""
        if not data or data[0] != _VERSION:
            raise ValueError("not events of a version that is known here")
        found, at = [], 1
        while at < len(data):
            size, at = _length(data, at)
            if at + size > len(data):
                raise ValueError("events are cut off")
            found.append(_numbered(data[at : at + size]))
            at += size
        return found


def _length(data: bytes, at: int) -> tuple[int, int]:
    """A varint, and where what follows it begins."""
    size = 0
    for place, byte in enumerate(data[at : at + _LONGEST_VARINT]):
        size |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return size, at + place + 1
    raise ValueError("a length of an event is broken")


def _numbered(data: bytes) -> Numbered:
    message = pb.GenerationEvent()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise ValueError("an event is broken") from None
    kind = message.WhichOneof("event")
    if kind is None or message.sequence < 1:
        raise ValueError("an event has no kind or no number")
    return Numbered(message.sequence, _DECODERS[kind](getattr(message, kind)))


def _text_delta(message: pb.TextDelta) -> Event:
    if not message.logprobs:
        return events.TextDelta(message.part_index, message.text)
    return events.TextDelta(message.part_index, message.text, tuple(map(_logprob, message.logprobs)))


def _logprob(message: pb.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(message.token, message.logprob, tuple((each.token, each.logprob) for each in message.top))


def _reasoning_delta(message: pb.ReasoningDelta) -> Event:
    form = message.WhichOneof("form")
    return events.ReasoningDelta(
        message.part_index,
        text=message.text if form == "text" else None,
        summary=message.summary if form == "summary" else None,
        redacted=message.redacted if form == "redacted" else None,
    )


def _call(message: content.ToolCall) -> ToolCall:
    return ToolCall(message.call_id, message.name, message.arguments_json)


def _call_completed(message: pb.ToolCallCompleted) -> Event:
    return events.ToolCallCompleted(
        message.part_index, _call(message.call), message.valid_json, message.valid_schema, message.problem
    )


def _citation(said: content.Citation) -> Citation:
    return Citation(
        said.start, said.end, said.title, said.uri, said.quote, said.part_index, issuer=said.issuer, data=said.data
    )


def _opaque(message: content.OpaquePart) -> Opaque:
    return Opaque(message.issuer, message.type, message.data)


def _finished(message: pb.GenerationFinished) -> Event:
    if message.reason not in _REASONS:
        raise ValueError("a reason to finish is not known here")
    return events.Finished(
        _REASONS[message.reason],
        message.provider_reason,
        _usage(message.usage),
        _timings(message.timings),
        message.provider_response_id,
        _cost(message.usage),
        message.from_cache,
    )


def _failed(message: pb.GenerationFailed) -> Event:
    return events.Failed(
        from_status(message.status),
        message.retryable,
        message.partial,
        _usage(message.usage),
        _cost(message.usage),
    )


def _usage(message: usage_pb2.Usage) -> Usage:
    return Usage(
        message.input_uncached_tokens,
        message.cache_read_tokens,
        message.cache_write_tokens,
        message.output_tokens,
        message.reasoning_tokens,
        message.source == usage_pb2.USAGE_SOURCE_ESTIMATED,
    )


def _cost(message: usage_pb2.Usage) -> Cost | None:
    return Cost(message.cost_micro_usd, message.price_version) if message.HasField("cost_micro_usd") else None


def _timings(message: pb.Timings) -> Timings:
    return Timings(_seconds(message.time_to_first_event), _seconds(message.total), _seconds(message.overhead))


def _seconds(message: Duration) -> float:
    return message.ToNanoseconds() / 1e9


_DECODERS: dict[str, Callable[[Any], Event]] = {
    "started": lambda message: events.Started(message.generation_id, message.provider, message.model, message.attempt),
    "text_delta": _text_delta,
    "reasoning_delta": _reasoning_delta,
    "reasoning_signature": lambda message: events.ReasoningSignature(
        message.part_index, message.signature, message.issuer
    ),
    "tool_call_started": lambda message: events.ToolCallStarted(message.part_index, message.call_id, message.name),
    "tool_call_arguments_delta": lambda message: events.ToolCallArguments(message.part_index, message.fragment),
    "tool_call_completed": _call_completed,
    "citation": lambda message: events.CitationAdded(_citation(message.citation)),
    "refusal_delta": lambda message: events.RefusalDelta(message.part_index, message.text),
    "opaque": lambda message: events.OpaqueAdded(message.part_index, _opaque(message.part)),
    # `from` is a word of Python.
    "route_changed": lambda message: events.RouteChanged(
        getattr(message, "from"), message.to, message.reason, message.attempt
    ),
    "usage": lambda message: events.UsageUpdated(_usage(message.usage), _cost(message.usage)),
    "finished": _finished,
    "failed": _failed,
}
