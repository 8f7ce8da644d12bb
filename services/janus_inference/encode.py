"""Domain to protobuf. Decides nothing."""

from collections.abc import Callable
from typing import Any

from google.protobuf.duration_pb2 import Duration

from janus_api.content.v1 import message_pb2 as content
from janus_api.content.v1 import usage_pb2
from janus_api.inference.v1 import event_pb2 as pb
from janus_api.inference.v1 import inference_service_pb2 as service_pb
from janus_api.inference.v1 import model_pb2
from janus_inference import events
from janus_inference.catalogue import Entry, Health, Kind
from janus_inference.embedding import Embedded
from janus_inference.events import Answer, Cost, FinishReason, Numbered, Timings, TokenLogprob, Usage
from janus_inference.model import Citation, Opaque, Part, Reasoning, Refusal, Text, ToolCall
from janus_kit.rpc_errors import to_status

_REASONS: dict[FinishReason, pb.FinishReason.ValueType] = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALLS: pb.FINISH_REASON_TOOL_CALLS,
    FinishReason.CONTENT_FILTER: pb.FINISH_REASON_CONTENT_FILTER,
    FinishReason.REFUSAL: pb.FINISH_REASON_REFUSAL,
    FinishReason.STOP_SEQUENCE: pb.FINISH_REASON_STOP_SEQUENCE,
    FinishReason.PAUSE: pb.FINISH_REASON_PAUSE,
    FinishReason.OTHER: pb.FINISH_REASON_OTHER,
}
_HEALTH: dict[Health, model_pb2.ModelHealth.ValueType] = {
    Health.OK: model_pb2.MODEL_HEALTH_OK,
    Health.RECOVERING: model_pb2.MODEL_HEALTH_RECOVERING,
    Health.UNAVAILABLE: model_pb2.MODEL_HEALTH_UNAVAILABLE,
}
_NO_USAGE = Usage()
_KINDS: dict[Kind, model_pb2.ModelKind.ValueType] = {
    Kind.GENERATIVE: model_pb2.MODEL_KIND_GENERATIVE,
    Kind.EMBEDDING: model_pb2.MODEL_KIND_EMBEDDING,
    Kind.ALIAS: model_pb2.MODEL_KIND_ALIAS,
}


def event_to(numbered: Numbered) -> pb.GenerationEvent:
    """One event of a stream."""
    message = pb.GenerationEvent()
    _fill(message, numbered)
    return message


def streamed_to(numbered: Numbered) -> service_pb.StreamGenerateResponse:
    """One message of a stream."""
    response = service_pb.StreamGenerateResponse()
    _fill(response.event, numbered)
    return response


def _fill(message: pb.GenerationEvent, numbered: Numbered) -> None:
    event = numbered.event
    message.sequence = numbered.sequence
    # Nine events in ten are text: it does not go through the table, and is written
    # in place, which costs a third of building a message for each level.
    if isinstance(event, events.TextDelta):
        delta = message.text_delta
        delta.part_index = event.part_index
        delta.text = event.text
        if event.logprobs:
            delta.logprobs.extend(map(_logprob, event.logprobs))
        return
    field, inner = _ENCODERS[type(event)](event)
    getattr(message, field).CopyFrom(inner)


def answer_to(answer: Answer) -> service_pb.GenerateResponse:
    """A whole answer."""
    return service_pb.GenerateResponse(
        generation_id=answer.generation_id,
        message=content.Message(role=content.ROLE_ASSISTANT, parts=[_part(part) for part in answer.message.parts]),
        finish_reason=_REASONS[answer.reason],
        provider_reason=answer.provider_reason,
        usage=usage_to(answer.usage, answer.cost),
        provider=answer.provider,
        model=answer.model,
        attempts=answer.attempts,
        timings=_timings(answer.timings),
        from_cache=answer.from_cache,
        logprobs=map(_logprob, answer.logprobs),
    )


def embedded_to(made: Embedded) -> service_pb.EmbedResponse:
    """Vectors."""
    return service_pb.EmbedResponse(
        vectors=[service_pb.Vector(values=vector) for vector in made.vectors],
        model=made.target.name,
        dimensions=len(made.vectors[0]),
        usage=usage_to(made.usage, made.cost),
    )


def entry_to(entry: Entry, health: Health) -> model_pb2.Model:
    """A model or alias."""
    price = entry.price
    return model_pb2.Model(
        name=entry.name,
        kind=_KINDS[entry.kind],
        provider=entry.provider,
        targets=[model_pb2.AliasTarget(model=target, weight=weight) for target, weight in entry.targets],
        context_window_tokens=entry.context_window_tokens,
        max_output_tokens=entry.max_output_tokens,
        capabilities=[model_pb2.Capability.Value(f"CAPABILITY_{name}") for name in entry.capabilities],
        price=None
        if price is None
        else model_pb2.Price(
            input_micro_usd=price.input,
            cache_read_micro_usd=price.cache_read,
            cache_write_micro_usd=price.cache_write,
            output_micro_usd=price.output,
            version=entry.price_version,
        ),
        health=_HEALTH[health],
        description=entry.description,
    )


def usage_to(usage: Usage, cost: Cost | None = None) -> usage_pb2.Usage:
    """Usage; the cost is left unset where it is unknown."""
    if usage == _NO_USAGE and cost is None:
        return usage_pb2.Usage()
    return usage_pb2.Usage(
        input_uncached_tokens=usage.input_uncached_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        output_tokens=usage.output_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        cost_micro_usd=cost.micro_usd if cost is not None else None,
        price_version=cost.price_version if cost is not None else "",
        source=usage_pb2.USAGE_SOURCE_ESTIMATED if usage.estimated else usage_pb2.USAGE_SOURCE_REPORTED,
    )


def _started(event: events.Started) -> tuple[str, Any]:
    return "started", pb.GenerationStarted(
        generation_id=event.generation_id,
        provider=event.provider,
        model=event.model,
        attempt=event.attempt,
    )


def _reasoning_delta(event: events.ReasoningDelta) -> tuple[str, Any]:
    return "reasoning_delta", pb.ReasoningDelta(part_index=event.part_index, **_form(event))


def _reasoning_signature(event: events.ReasoningSignature) -> tuple[str, Any]:
    return "reasoning_signature", pb.ReasoningSignature(
        part_index=event.part_index, signature=event.signature, issuer=event.issuer
    )


def _call_started(event: events.ToolCallStarted) -> tuple[str, Any]:
    return "tool_call_started", pb.ToolCallStarted(part_index=event.part_index, call_id=event.call_id, name=event.name)


def _call_arguments(event: events.ToolCallArguments) -> tuple[str, Any]:
    return "tool_call_arguments_delta", pb.ToolCallArgumentsDelta(part_index=event.part_index, fragment=event.fragment)


def _call_completed(event: events.ToolCallCompleted) -> tuple[str, Any]:
    return "tool_call_completed", pb.ToolCallCompleted(
        part_index=event.part_index,
        call=_call(event.call),
        valid_json=event.valid_json,
        valid_schema=event.valid_schema,
        problem=event.problem,
    )


def _finished(event: events.Finished) -> tuple[str, Any]:
    return "finished", pb.GenerationFinished(
        reason=_REASONS[event.reason],
        provider_reason=event.provider_reason,
        usage=usage_to(event.usage, event.cost),
        timings=_timings(event.timings),
        provider_response_id=event.provider_response_id,
        from_cache=event.from_cache,
    )


def _failed(event: events.Failed) -> tuple[str, Any]:
    after = event.error.retry_after
    return "failed", pb.GenerationFailed(
        status=to_status(event.error),
        retryable=event.retryable,
        retry_after=_duration(after) if after is not None else None,
        partial=event.partial,
        usage=usage_to(event.usage, event.cost),
    )


_ENCODERS: dict[type, Callable[[Any], tuple[str, Any]]] = {
    events.Started: _started,
    events.ReasoningDelta: _reasoning_delta,
    events.ReasoningSignature: _reasoning_signature,
    events.ToolCallStarted: _call_started,
    events.ToolCallArguments: _call_arguments,
    events.ToolCallCompleted: _call_completed,
    events.CitationAdded: lambda event: ("citation", pb.CitationAdded(citation=_citation(event.citation))),
    events.RefusalDelta: lambda event: (
        "refusal_delta",
        pb.RefusalDelta(part_index=event.part_index, text=event.text),
    ),
    events.OpaqueAdded: lambda event: (
        "opaque",
        pb.OpaqueAdded(part_index=event.part_index, part=_opaque(event.part)),
    ),
    events.RouteChanged: lambda event: (
        "route_changed",
        pb.RouteChanged(**{"from": event.source}, to=event.to, reason=event.reason, attempt=event.attempt),
    ),
    events.UsageUpdated: lambda event: ("usage", pb.UsageUpdated(usage=usage_to(event.usage, event.cost))),
    events.Finished: _finished,
    events.Failed: _failed,
}


def _logprob(token: TokenLogprob) -> pb.TokenLogprob:
    return pb.TokenLogprob(
        token=token.token,
        logprob=token.logprob,
        top=[pb.TokenAlternative(token=each, logprob=logprob) for each, logprob in token.top],
    )


def _part(part: Part) -> content.Part:
    match part:
        case Text(text=text):
            return content.Part(text=text)
        case ToolCall():
            return content.Part(tool_call=_call(part))
        case Reasoning():
            return content.Part(
                reasoning=content.Reasoning(signature=part.signature, issuer=part.issuer, **_form(part))
            )
        case Refusal(text=text):
            return content.Part(refusal=text)
        case Citation():
            return content.Part(citation=_citation(part))
        case Opaque():
            return content.Part(opaque=_opaque(part))
    raise TypeError(f"an answer has no part of the kind {type(part).__name__}")


def _form(said: Reasoning | events.ReasoningDelta) -> dict[str, Any]:
    """The one form that the reasoning has."""
    forms = {"text": said.text, "summary": said.summary, "redacted": said.redacted}
    return {name: value for name, value in forms.items() if value is not None}


def _call(call: ToolCall) -> content.ToolCall:
    return content.ToolCall(call_id=call.call_id, name=call.name, arguments_json=call.arguments_json)


def _citation(said: Citation) -> content.Citation:
    return content.Citation(
        start=said.start,
        end=said.end,
        title=said.title,
        uri=said.uri,
        quote=said.quote,
        part_index=said.part_index,
        issuer=said.issuer,
        data=said.data,
    )


def _opaque(part: Opaque) -> content.OpaquePart:
    return content.OpaquePart(issuer=part.issuer, type=part.type, data=part.data)


def _timings(timings: Timings) -> pb.Timings:
    return pb.Timings(
        time_to_first_event=_duration(timings.time_to_first_event),
        total=_duration(timings.total),
        overhead=_duration(timings.overhead),
    )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
