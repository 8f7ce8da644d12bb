"""Protobuf to domain. Decides nothing: what makes no sense becomes a value that validation refuses.

Only a request with too many items is refused before: one of 4 MiB has room for
hundreds of thousands, and to decode them all would keep every other call waiting.
"""

import math
from collections.abc import Callable, Iterable, Sized
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message as ProtoMessage

from janus_api.content.v1 import message_pb2 as content
from janus_api.inference.v1 import inference_service_pb2, model_pb2
from janus_api.inference.v1 import request_pb2 as pb
from janus_inference.catalogue import Kind
from janus_inference.model import (
    MOST_PARTS,
    Audio,
    CachePolicy,
    Citation,
    Document,
    Effort,
    EmbedPurpose,
    Empty,
    Image,
    JsonFormat,
    JsonSchemaFormat,
    Media,
    Message,
    Opaque,
    Part,
    Prompt,
    Reasoning,
    ReasoningOptions,
    Refusal,
    Role,
    Routing,
    Sampling,
    Text,
    Timeouts,
    ToolCall,
    ToolChoice,
    ToolChoiceMode,
    ToolDefinition,
    ToolResult,
)
from janus_inference.validation import (
    MAX_ALL_PARTS,
    MAX_FALLBACKS,
    MAX_INPUTS,
    MAX_LABELS,
    MAX_MESSAGES,
    MAX_RESULT_PARTS,
    MAX_STOPS,
    MAX_TOOLS,
)
from janus_kit.errors import InvalidArgument
from janus_kit.validate import Violations

_Value = TypeVar("_Value")

_ROLES: dict[int, Role] = {
    content.ROLE_SYSTEM: Role.SYSTEM,
    content.ROLE_USER: Role.USER,
    content.ROLE_ASSISTANT: Role.ASSISTANT,
    content.ROLE_TOOL: Role.TOOL,
}
_MODES: dict[int, ToolChoiceMode] = {
    pb.TOOL_CHOICE_MODE_AUTO: ToolChoiceMode.AUTO,
    pb.TOOL_CHOICE_MODE_NONE: ToolChoiceMode.NONE,
    pb.TOOL_CHOICE_MODE_REQUIRED: ToolChoiceMode.REQUIRED,
    pb.TOOL_CHOICE_MODE_NAMED: ToolChoiceMode.NAMED,
}
_KINDS: dict[int, Kind] = {
    model_pb2.MODEL_KIND_GENERATIVE: Kind.GENERATIVE,
    model_pb2.MODEL_KIND_EMBEDDING: Kind.EMBEDDING,
    model_pb2.MODEL_KIND_ALIAS: Kind.ALIAS,
}
_PURPOSES: dict[int, EmbedPurpose] = {
    inference_service_pb2.EMBED_PURPOSE_DOCUMENT: EmbedPurpose.DOCUMENT,
    inference_service_pb2.EMBED_PURPOSE_QUERY: EmbedPurpose.QUERY,
}
_EFFORTS: dict[int, Effort] = {
    pb.REASONING_EFFORT_NONE: Effort.NONE,
    pb.REASONING_EFFORT_MINIMAL: Effort.MINIMAL,
    pb.REASONING_EFFORT_LOW: Effort.LOW,
    pb.REASONING_EFFORT_MEDIUM: Effort.MEDIUM,
    pb.REASONING_EFFORT_HIGH: Effort.HIGH,
}
_KNOWN_MODES = frozenset(pb.ToolChoiceMode.values())
_KNOWN_EFFORTS = frozenset(pb.ReasoningEffort.values())
_KNOWN_CACHE_MODES = frozenset(pb.CacheMode.values())
# Most prompts say nothing of these, and to look for each of their fields takes longer than all the rest.
_NO_SAMPLING, _NO_TIMEOUTS, _NO_ROUTING, _NO_CACHE = Sampling(), Timeouts(), Routing(), CachePolicy()


def prompt_from(prompt: pb.Prompt) -> Prompt:
    """The prompt of a request. Raises InvalidArgument when it has too many items."""
    _refuse_too_many(prompt)
    _refuse_unknown(prompt)
    return Prompt(
        messages=tuple(map(_message, prompt.messages)),
        model=prompt.model,
        system=prompt.system,
        tools=tuple(map(_tool, prompt.tools)),
        tool_choice=_tool_choice(prompt),
        parallel_tool_calls=_given(prompt, "parallel_tool_calls", lambda: prompt.parallel_tool_calls),
        response_format=_response_format(prompt),
        sampling=_sampling(prompt.sampling) if prompt.HasField("sampling") else _NO_SAMPLING,
        stop=tuple(prompt.stop),
        max_output_tokens=_given(prompt, "max_output_tokens", lambda: prompt.max_output_tokens),
        reasoning=_reasoning_options(prompt),
        timeouts=_timeouts(prompt.timeouts) if prompt.HasField("timeouts") else _NO_TIMEOUTS,
        routing=_routing(prompt.routing) if prompt.HasField("routing") else _NO_ROUTING,
        cache=_cache(prompt.cache) if prompt.HasField("cache") else _NO_CACHE,
        labels=dict(prompt.labels),
        provider_options_json=prompt.provider_options_json,
        resumable=prompt.resumable,
        linger=_seconds(prompt, "linger", prompt.linger),
        request_id=prompt.request_id,
    )


def inputs_from(request: inference_service_pb2.EmbedRequest) -> list[str]:
    """The texts to embed. Raises InvalidArgument when the request has too many items."""
    _refuse_too_many_inputs(request)
    return list(request.inputs)


def resume_from(request: inference_service_pb2.ResumeGenerateRequest) -> tuple[str, int]:
    """The generation and the sequence to go on after. Raises InvalidArgument."""
    check = Violations()
    check.id("generation_id", request.generation_id)
    check.require(request.after_sequence >= 0, "after_sequence", "must be 0 or more")
    check.done()
    return request.generation_id, request.after_sequence


def purpose_from(request: inference_service_pb2.EmbedRequest) -> EmbedPurpose | None:
    """What the vectors are for; None for the model's default. Raises InvalidArgument for an unknown number."""
    if request.purpose not in inference_service_pb2.EmbedPurpose.values():
        raise InvalidArgument("purpose", "must be a value of the enum")
    return _PURPOSES.get(request.purpose)


def kind_from(request: inference_service_pb2.ListModelsRequest) -> Kind | None:
    """The kind of models that is wanted; None for all. Raises InvalidArgument for an unknown number."""
    if request.kind not in model_pb2.ModelKind.values():
        raise InvalidArgument("kind", "must be a value of the enum")
    return _KINDS.get(request.kind)


def _message(message: content.Message) -> Message:
    return Message(
        role=_ROLES.get(message.role, Role.UNSPECIFIED),
        parts=tuple(map(_part, message.parts)),
        name=message.name,
        id=message.id,
    )


def _part(part: content.Part) -> Part:
    mark = part.cache_breakpoint
    match part.WhichOneof("kind"):
        case "text":
            return Text(part.text, mark)
        case "image":
            return Image(_media(part.image), mark)
        case "audio":
            return Audio(_media(part.audio), mark)
        case "document":
            document = part.document
            return Document(_media(document.media), document.title, mark, document.citations)
        case "tool_call":
            call = part.tool_call
            return ToolCall(call.call_id, call.name, call.arguments_json, mark)
        case "tool_result":
            result = part.tool_result
            return ToolResult(result.call_id, tuple(map(_part, result.parts)), result.is_error, mark)
        case "reasoning":
            return _reasoning(part.reasoning, mark)
        case "refusal":
            return Refusal(part.refusal, mark)
        case "citation":
            said = part.citation
            place = said.start, said.end
            return Citation(
                *place, said.title, said.uri, said.quote, said.part_index, said.issuer, said.data, cache_breakpoint=mark
            )
        case "opaque":
            return Opaque(part.opaque.issuer, part.opaque.type, part.opaque.data, mark)
    return Empty(mark)


def _media(media: content.Media) -> Media:
    match media.WhichOneof("source"):
        case "data":
            return Media(media.mime_type, data=media.data)
        case "uri":
            return Media(media.mime_type, uri=media.uri)
    return Media(media.mime_type)


def _reasoning(said: content.Reasoning, mark: bool) -> Reasoning:
    form = said.WhichOneof("form")
    return Reasoning(
        text=said.text if form == "text" else None,
        summary=said.summary if form == "summary" else None,
        redacted=said.redacted if form == "redacted" else None,
        signature=said.signature,
        issuer=said.issuer,
        cache_breakpoint=mark,
    )


def _tool(tool: pb.ToolDefinition) -> ToolDefinition:
    return ToolDefinition(tool.name, tool.description, tool.parameters_schema_json, tool.strict)


def _tool_choice(prompt: pb.Prompt) -> ToolChoice | None:
    mode = _MODES.get(prompt.tool_choice.mode)
    return ToolChoice(mode, prompt.tool_choice.name) if mode is not None else None


def _response_format(prompt: pb.Prompt) -> JsonFormat | JsonSchemaFormat | None:
    match prompt.response_format.WhichOneof("form"):
        case "json":
            return JsonFormat()
        case "json_schema":
            wanted = prompt.response_format.json_schema
            return JsonSchemaFormat(wanted.name, wanted.schema_json, wanted.description, wanted.strict)
    return None


def _sampling(given: pb.Sampling) -> Sampling:
    return Sampling(
        temperature=_given(given, "temperature", lambda: given.temperature),
        top_p=_given(given, "top_p", lambda: given.top_p),
        top_k=_given(given, "top_k", lambda: given.top_k),
        frequency_penalty=_given(given, "frequency_penalty", lambda: given.frequency_penalty),
        presence_penalty=_given(given, "presence_penalty", lambda: given.presence_penalty),
        seed=_given(given, "seed", lambda: given.seed),
        top_logprobs=_given(given, "top_logprobs", lambda: given.top_logprobs),
    )


def _reasoning_options(prompt: pb.Prompt) -> ReasoningOptions | None:
    if not prompt.HasField("reasoning"):
        return None
    given = prompt.reasoning
    return ReasoningOptions(
        effort=_EFFORTS.get(given.effort),
        budget_tokens=_given(given, "budget_tokens", lambda: given.budget_tokens),
        summary=given.summary,
    )


def _routing(given: pb.Routing) -> Routing:
    return Routing(tuple(given.fallbacks), _seconds(given, "hedge_after", given.hedge_after))


def _cache(given: pb.CachePolicy) -> CachePolicy:
    return CachePolicy(
        read=given.mode in (pb.CACHE_MODE_READ, pb.CACHE_MODE_READ_WRITE),
        write=given.mode in (pb.CACHE_MODE_WRITE, pb.CACHE_MODE_READ_WRITE),
        max_age=_seconds(given, "max_age", given.max_age),
    )


def _timeouts(given: pb.Timeouts) -> Timeouts:
    return Timeouts(
        connect=_seconds(given, "connect", given.connect),
        first_event=_seconds(given, "first_event", given.first_event),
        idle=_seconds(given, "idle", given.idle),
        total=_seconds(given, "total", given.total),
    )


def _seconds(owner: ProtoMessage, field: str, duration: Duration) -> float | None:
    """NaN, which is within no bounds, for what is no duration."""
    if not owner.HasField(field):
        return None
    if duration.seconds * duration.nanos < 0 or abs(duration.nanos) > 999_999_999:
        return math.nan
    return duration.seconds + duration.nanos / 1e9


def _given(owner: ProtoMessage, field: str, value: Callable[[], _Value]) -> _Value | None:
    return value() if owner.HasField(field) else None


def _refuse_unknown(prompt: pb.Prompt) -> None:
    """Raises InvalidArgument for an enum number that this version does not know: to ignore it would be to guess."""
    check = Violations()
    for field, number, known in (
        ("prompt.tool_choice.mode", prompt.tool_choice.mode, _KNOWN_MODES),
        ("prompt.reasoning.effort", prompt.reasoning.effort, _KNOWN_EFFORTS),
        ("prompt.cache.mode", prompt.cache.mode, _KNOWN_CACHE_MODES),
    ):
        check.require(number in known, field, "must be a value of the enum")
    chosen = prompt.tool_choice
    unsaid = chosen.mode == pb.TOOL_CHOICE_MODE_UNSPECIFIED and chosen.name
    check.require(not unsaid, "prompt.tool_choice.name", "is allowed only with TOOL_CHOICE_MODE_NAMED")
    check.done()


def _refuse_too_many(prompt: pb.Prompt) -> None:
    """Raises InvalidArgument when a repeated field of the prompt is too long; what is too short is not for here."""
    check = Violations()
    _at_most(check, "prompt.messages", prompt.messages, MAX_MESSAGES, at_least=1)
    _at_most(check, "prompt.tools", prompt.tools, MAX_TOOLS)
    _at_most(check, "prompt.stop", prompt.stop, MAX_STOPS)
    _at_most(check, "prompt.labels", prompt.labels, MAX_LABELS)
    _at_most(check, "prompt.routing.fallbacks", prompt.routing.fallbacks, MAX_FALLBACKS)
    check.done()
    check.require(
        sum(len(message.parts) for message in prompt.messages) <= MAX_ALL_PARTS,
        "prompt.messages",
        f"must have at most {MAX_ALL_PARTS} parts in all",
    )
    check.done()
    for index, message in enumerate(prompt.messages):
        path = f"prompt.messages[{index}]"
        _at_most(check, f"{path}.parts", message.parts, MOST_PARTS, at_least=1)
        # The first message that is too long is enough: the rest may be just as long.
        check.done()
        _results(check, path, message.parts)


def _refuse_too_many_inputs(request: inference_service_pb2.EmbedRequest) -> None:
    """The same for what is to be embedded."""
    check = Violations()
    _at_most(check, "inputs", request.inputs, MAX_INPUTS, at_least=1)
    _at_most(check, "labels", request.labels, MAX_LABELS)
    check.done()


def _results(check: Violations, path: str, parts: Iterable[content.Part]) -> None:
    for at, part in enumerate(parts):
        if part.HasField("tool_result"):
            inside = f"{path}.parts[{at}].tool_result"
            _at_most(check, f"{inside}.parts", part.tool_result.parts, MAX_RESULT_PARTS)
            check.done()
            # Results within results are refused later, but decoded first.
            _results(check, inside, part.tool_result.parts)


def _at_most(check: Violations, field: str, items: Sized, most: int, *, at_least: int = 0) -> None:
    if len(items) > most:
        check.count(field, items, at_least=at_least, at_most=most)
