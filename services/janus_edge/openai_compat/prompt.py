"""A Chat Completions request as the prompt of the inference contract.

Whatever the request's own shape decides is decided here, with OpenAI's names
for the fields; every other rule (bounds, models, capabilities) is the
inference service's, whose refusals come back through ``Translated.param_of``.
"""

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from janus_api.content.v1 import message_pb2 as content
from janus_api.inference.v1 import request_pb2 as pb
from janus_edge.openai_compat import schema
from janus_edge.openai_compat.errors import HttpError, param_of_field

_EFFORTS = {
    "none": pb.REASONING_EFFORT_NONE,
    "minimal": pb.REASONING_EFFORT_MINIMAL,
    "low": pb.REASONING_EFFORT_LOW,
    "medium": pb.REASONING_EFFORT_MEDIUM,
    "high": pb.REASONING_EFFORT_HIGH,
}
_CHOICES = {
    "none": pb.TOOL_CHOICE_MODE_NONE,
    "auto": pb.TOOL_CHOICE_MODE_AUTO,
    "required": pb.TOOL_CHOICE_MODE_REQUIRED,
}
_AUDIO = {"wav": "audio/wav", "mp3": "audio/mpeg"}
_DATA_URL = re.compile(r"data:(?P<mime>[\w.+-]+/[\w.+-]+)(?:;[\w-]+=[^;,]*)*;base64,", re.ASCII)
_MESSAGE_FIELD = re.compile(r"(?:prompt\.)?messages\[(\d+)\](.*)", re.DOTALL)


@dataclass(frozen=True)
class Translated:
    """The prompt, and how its fields are called in the request it came from."""

    prompt: pb.Prompt
    origins: tuple[int, ...]
    """For each message of the prompt, its index in the request."""
    max_tokens_name: str

    def param_of(self, field: str) -> str:
        """The request's parameter for a field path of the prompt."""
        param = param_of_field(field)
        if param == "max_completion_tokens":
            return self.max_tokens_name
        found = _MESSAGE_FIELD.fullmatch(field)
        if found and int(found[1]) < len(self.origins):
            return f"messages[{self.origins[int(found[1])]}]"
        return param


def parse(body: bytes) -> schema.ChatRequest:
    """The request in a JSON body. Raises HttpError naming the parameter that is wrong."""
    try:
        # Unlike json.loads it refuses NaN, lone surrogates and bottomless nesting.
        raw = from_json(body, allow_inf_nan=False)
    except ValueError:
        raise HttpError(400, "the body is not valid JSON", code="invalid_json") from None
    if not isinstance(raw, dict):
        raise HttpError(400, "the body must be a JSON object", code="invalid_json")
    kept = {}
    for name, value in raw.items():
        if name in schema.UNSUPPORTED and value is not None and value not in schema.UNSUPPORTED[name]:
            raise HttpError(
                400,
                f"'{name}' is not supported by this server",
                code="unsupported_parameter",
                param=name,
            )
        if name not in schema.UNSUPPORTED and name not in schema.IGNORED:
            kept[name] = value
    try:
        return schema.ChatRequest.model_validate(kept)
    except ValidationError as error:
        raise _invalid(error, kept) from None


def translate(request: schema.ChatRequest) -> Translated:
    """The request as a prompt. Raises HttpError for what the schema cannot say."""
    prompt = pb.Prompt(model=request.model)
    name, limit = "max_completion_tokens", request.max_completion_tokens
    if request.max_tokens is not None:
        if limit not in (None, request.max_tokens):
            raise _refused("max_tokens", "differs from max_completion_tokens")
        name, limit = "max_tokens", request.max_tokens
    if limit is not None:
        prompt.max_output_tokens = _int32(name, limit)
    if request.stream_options is not None and not request.stream:
        raise _refused("stream_options", "is only allowed when stream is true")
    _sampling(request, prompt)
    _tools(request, prompt)
    _format(request, prompt)
    if request.reasoning_effort is not None:
        prompt.reasoning.effort = _EFFORTS[request.reasoning_effort]
    prompt.stop.extend([request.stop] if isinstance(request.stop, str) else request.stop or [])
    for key, value in (request.metadata or {}).items():
        prompt.labels[key] = value
    return Translated(prompt, tuple(_messages(request, prompt)), name)


def _sampling(request: schema.ChatRequest, prompt: pb.Prompt) -> None:
    for field in ("temperature", "top_p", "frequency_penalty", "presence_penalty", "seed"):
        value = getattr(request, field)
        if value is not None:
            setattr(prompt.sampling, field, value)


def _tools(request: schema.ChatRequest, prompt: pb.Prompt) -> None:
    for tool in request.tools or []:
        function = tool.function
        prompt.tools.add(
            name=function.name,
            description=function.description or "",
            parameters_schema_json=_json(function.parameters),
            strict=bool(function.strict),
        )
    if isinstance(request.tool_choice, str):
        prompt.tool_choice.mode = _CHOICES[request.tool_choice]
    elif request.tool_choice is not None:
        prompt.tool_choice.mode = pb.TOOL_CHOICE_MODE_NAMED
        prompt.tool_choice.name = request.tool_choice.function.name
    if request.parallel_tool_calls is not None:
        prompt.parallel_tool_calls = request.parallel_tool_calls


def _format(request: schema.ChatRequest, prompt: pb.Prompt) -> None:
    match request.response_format:
        case schema.JsonObjectFormat():
            prompt.response_format.json.SetInParent()
        case schema.JsonSchemaFormat(json_schema=given):
            prompt.response_format.json_schema.CopyFrom(
                pb.JsonSchemaFormat(
                    name=given.name,
                    description=given.description or "",
                    schema_json=_json(given.schema_),
                    strict=bool(given.strict),
                )
            )


def _messages(request: schema.ChatRequest, prompt: pb.Prompt) -> list[int]:
    """Add the messages; returns where each came from.

    Tool messages that follow each other answer the same assistant message and
    become one.
    """
    origins: list[int] = []
    for index, message in enumerate(request.messages):
        where = f"messages[{index}]"
        if isinstance(message, schema.ToolMessage):
            if not prompt.messages or prompt.messages[-1].role != content.ROLE_TOOL:
                prompt.messages.add(role=content.ROLE_TOOL)
                origins.append(index)
            result = content.ToolResult(call_id=message.tool_call_id)
            if message.content:
                _parts(message.content, result, where)
            prompt.messages[-1].parts.add(tool_result=result)
            continue
        origins.append(index)
        target = prompt.messages.add(name=message.name or "")
        match message:
            case schema.SystemMessage():
                target.role = content.ROLE_SYSTEM
                _parts(message.content, target, where)
            case schema.UserMessage():
                target.role = content.ROLE_USER
                _parts(message.content, target, where)
            case schema.AssistantMessage():
                target.role = content.ROLE_ASSISTANT
                _assistant(message, target, where)
    return origins


def _assistant(message: schema.AssistantMessage, target: content.Message, where: str) -> None:
    # Clients send an empty content beside tool calls; it says nothing.
    if message.content or (message.content is not None and not message.tool_calls and not message.refusal):
        _parts(message.content, target, where)
    if message.refusal:
        target.parts.add(refusal=message.refusal)
    for call in message.tool_calls or []:
        target.parts.add(
            tool_call=content.ToolCall(
                call_id=call.id, name=call.function.name, arguments_json=call.function.arguments or "{}"
            )
        )
    if not target.parts:
        raise _refused(where, "must have content, a refusal or tool_calls")


def _parts(
    given: str
    | list[schema.TextPart]
    | list[schema.TextPart | schema.RefusalPart]
    | list[schema.TextPart | schema.ImagePart | schema.AudioPart | schema.FilePart],
    target: content.Message | content.ToolResult,
    where: str,
) -> None:
    if isinstance(given, str):
        target.parts.add(text=given)
        return
    for index, part in enumerate(given):
        at = f"{where}.content[{index}]"
        match part:
            case schema.TextPart():
                added = target.parts.add(text=part.text)
            case schema.RefusalPart():
                added = target.parts.add(refusal=part.refusal)
            case schema.ImagePart():
                added = target.parts.add(image=_media(f"{at}.image_url.url", part.image_url.url))
            case schema.AudioPart():
                data = _bytes(f"{at}.input_audio.data", part.input_audio.data)
                added = target.parts.add(audio=content.Media(mime_type=_AUDIO[part.input_audio.format], data=data))
            case schema.FilePart():
                media = _media(f"{at}.file.file_data", part.file.file_data)
                added = target.parts.add(document=content.Document(media=media, title=part.file.filename or ""))
        added.cache_breakpoint = getattr(part, "prompt_cache_breakpoint", None) is not None


def _media(where: str, url: str) -> content.Media:
    if not url.startswith("data:"):
        return content.Media(uri=url)
    head = _DATA_URL.match(url)
    if head is None:
        raise _refused(where, "a data: URL must name a MIME type and be base64")
    return content.Media(mime_type=head["mime"], data=_bytes(where, url[head.end() :]))


def _bytes(where: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _refused(where, "is not valid base64") from None


def _json(value: dict[str, Any] | None) -> str:
    if not value:
        return ""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _int32(where: str, number: int) -> int:
    if not -(2**31) <= number < 2**31:
        raise _refused(where, "is out of range")
    return number


def _refused(param: str, rule: str) -> HttpError:
    return HttpError(400, f"{param}: {rule}", code="invalid_value", param=param)


def _invalid(error: ValidationError, body: dict[str, Any]) -> HttpError:
    """The first violation, with its place in OpenAI's notation."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = _place(first["loc"], body)
    match first["type"]:
        case "missing":
            return HttpError(
                400, f"missing required parameter: '{param}'", code="missing_required_parameter", param=param
            )
        case "extra_forbidden":
            return HttpError(400, f"unknown parameter: '{param}'", code="unknown_parameter", param=param)
    return HttpError(400, f"{param}: {first['msg']}", code="invalid_value", param=param)


def _place(loc: tuple[int | str, ...], body: dict[str, Any]) -> str:
    """`("messages", 0, "<user>", "content")` -> `messages[0].content`."""
    place = ""
    for step in loc:
        if isinstance(step, int):
            place += f"[{step}]"
        elif not (step.startswith("<") and step.endswith(">")):
            place += f".{step}" if place else step
    return place or "body"
