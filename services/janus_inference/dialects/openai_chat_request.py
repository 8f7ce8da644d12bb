"""The body of a Chat Completions request."""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from janus_inference.dialects.capabilities import malformed, unsupported, unsupported_part
from janus_inference.model import (
    Image,
    JsonFormat,
    JsonSchemaFormat,
    Media,
    Message,
    Opaque,
    Part,
    Prompt,
    Reasoning,
    Refusal,
    Role,
    Text,
    ToolCall,
    ToolChoiceMode,
    ToolDefinition,
    ToolResult,
)
from janus_inference.profiles import ChatProfile

# A name that every server of this dialect takes; others are left out, as the field is a hint.
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

# Set by Janus whatever the prompt says, so that options cannot set them.
RESERVED = frozenset({"model", "messages", "stream", "stream_options", "n"})


def chat_body(prompt: Prompt, model: str, profile: ChatProfile, issuer: str) -> dict[str, Any]:
    """The request for a streamed answer. Raises InvalidArgument for what cannot be said in it."""
    body: dict[str, Any] = {"model": model, "messages": _messages(prompt, model, profile, issuer)}
    body["stream"] = True
    if profile.stream_usage:
        body["stream_options"] = {"include_usage": True}
    if prompt.tools:
        body["tools"] = [_tool(tool) for tool in prompt.tools]
    if prompt.tool_choice is not None:
        body["tool_choice"] = (
            {"type": "function", "function": {"name": prompt.tool_choice.name}}
            if prompt.tool_choice.mode is ToolChoiceMode.NAMED
            else prompt.tool_choice.mode.value
        )
    if prompt.parallel_tool_calls is not None:
        body["parallel_tool_calls"] = prompt.parallel_tool_calls
    if prompt.response_format is not None:
        body["response_format"] = _format(prompt.response_format)
    if prompt.max_output_tokens is not None:
        body[profile.max_tokens_field] = prompt.max_output_tokens
    if prompt.stop:
        if profile.max_stop is not None and len(prompt.stop) > profile.max_stop:
            rule = f"this provider takes at most {profile.max_stop} stop sequences"
            raise unsupported(model, "stop", "prompt.stop", rule)
        body["stop"] = list(prompt.stop)
    body |= _sampling(prompt, model, profile)
    if (reasoning := prompt.reasoning) is not None:
        if reasoning.budget_tokens is not None:
            rule = "this provider takes an effort, not a number of tokens"
            raise unsupported(model, "REASONING", "prompt.reasoning.budget_tokens", rule)
        if reasoning.effort is not None:
            body["reasoning_effort"] = reasoning.effort.value
    return body


def _sampling(prompt: Prompt, model: str, profile: ChatProfile) -> dict[str, Any]:
    given = prompt.sampling
    if given.top_k is not None and not profile.extra_sampling:
        raise unsupported(model, "top_k", "prompt.sampling.top_k", "this provider does not know top_k")
    names = ("temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "seed")
    return {name: value for name in names if (value := getattr(given, name)) is not None}


def _format(wanted: JsonFormat | JsonSchemaFormat) -> dict[str, Any]:
    if isinstance(wanted, JsonFormat):
        return {"type": "json_object"}
    schema: dict[str, Any] = {"name": wanted.name, "schema": json.loads(wanted.schema_json)}
    if wanted.description:
        schema["description"] = wanted.description
    if wanted.strict:
        schema["strict"] = True
    return {"type": "json_schema", "json_schema": schema}


def _tool(tool: ToolDefinition) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters_schema_json:
        function["parameters"] = json.loads(tool.parameters_schema_json)
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _messages(prompt: Prompt, model: str, profile: ChatProfile, issuer: str) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if prompt.system:
        messages.append({"role": "system", "content": prompt.system})
    for index, message in enumerate(prompt.messages):
        path = f"prompt.messages[{index}]"
        if message.role is Role.TOOL:
            messages += [
                {"role": "tool", "tool_call_id": part.call_id, "content": _result(part, model, f"{path}.parts[{at}]")}
                for at, part in enumerate(message.parts)
                if isinstance(part, ToolResult)
            ]
        elif message.role is Role.ASSISTANT:
            messages.append(_assistant(message, profile, issuer, path))
        else:
            said: dict[str, Any] = {"role": message.role.value}
            said["content"] = _content(message.parts, model, path)
            if _NAME.fullmatch(message.name):
                said["name"] = message.name
            messages.append(said)
    return messages


def _content(parts: Sequence[Part], model: str, path: str) -> str | list[dict[str, Any]]:
    if len(parts) == 1 and isinstance(parts[0], Text):
        return parts[0].text
    return [_block(part, model, f"{path}.parts[{at}]") for at, part in enumerate(parts)]


def _block(part: Part, model: str, path: str) -> dict[str, Any]:
    match part:
        case Text(text=text):
            return {"type": "text", "text": text}
        case Image(media=media):
            return {"type": "image_url", "image_url": {"url": _url(media)}}
    raise unsupported_part(model, part, path)


def _url(media: Media) -> str:
    if media.data is None:
        return media.uri or ""
    return f"data:{media.mime_type};base64,{base64.b64encode(media.data).decode()}"


def _result(result: ToolResult, model: str, path: str) -> str:
    """A tool's answer; this dialect has text only, and no mark for an error."""
    texts = []
    for at, part in enumerate(result.parts):
        if not isinstance(part, Text):
            raise unsupported_part(model, part, f"{path}.tool_result.parts[{at}]")
        texts.append(part.text)
    text = "\n".join(texts)
    return f"Error: {text}" if result.is_error else text


def _assistant(message: Message, profile: ChatProfile, issuer: str, path: str) -> dict[str, Any]:
    said: dict[str, Any] = {"role": "assistant"}
    texts = [part.text for part in message.parts if isinstance(part, Text)]
    refusals = [part.text for part in message.parts if isinstance(part, Refusal)]
    calls = [part for part in message.parts if isinstance(part, ToolCall)]
    if texts or not calls:
        said["content"] = "".join(texts)
    if refusals:
        said["refusal"] = "".join(refusals)
    if calls:
        said["tool_calls"] = [
            {
                "id": call.call_id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments_json or "{}"},
            }
            for call in calls
        ]
    said |= _reasoning(message.parts, profile, issuer, path)
    if _NAME.fullmatch(message.name):
        said["name"] = message.name
    return said


def _reasoning(parts: Sequence[Part], profile: ChatProfile, issuer: str, path: str) -> Mapping[str, Any]:
    """Earlier reasoning, sent back to its issuer alone and only where the server takes it."""
    back: dict[str, Any] = {}
    thought = ""
    for at, part in enumerate(parts):
        if isinstance(part, Opaque) and part.issuer == issuer and part.type == "reasoning_details":
            try:
                back["reasoning_details"] = json.loads(part.data)
            except ValueError:
                raise malformed(f"{path}.parts[{at}].opaque.data", "must be as the issuer wrote it") from None
        elif isinstance(part, Reasoning) and part.issuer == issuer:
            thought += part.text or ""
    if thought and profile.reasoning_field:
        back[profile.reasoning_field] = thought
    return back
