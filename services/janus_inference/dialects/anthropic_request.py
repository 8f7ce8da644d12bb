"""The body of a Messages request."""

import base64
import json
from collections.abc import Iterable
from typing import Any

from janus_inference.dialects.capabilities import malformed, unsupported, unsupported_part
from janus_inference.model import (
    Audio,
    Document,
    Effort,
    Image,
    JsonFormat,
    Media,
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
from janus_inference.profiles import DEFAULT_MAX_OUTPUT_TOKENS, max_output_tokens

# Thinking tokens for each coarse setting; the provider's least is 1,024.
_BUDGET = {Effort.MINIMAL: 1024, Effort.LOW: 2048, Effort.MEDIUM: 8192, Effort.HIGH: 16_384}
_CHOICE = {ToolChoiceMode.AUTO: "auto", ToolChoiceMode.NONE: "none", ToolChoiceMode.REQUIRED: "any"}

# Set by Janus whatever the prompt says, so that options cannot set them.
RESERVED = frozenset({"model", "messages", "max_tokens", "stream"})


def messages_body(prompt: Prompt, model: str, issuer: str) -> dict[str, Any]:
    """The request for a streamed answer. Raises InvalidArgument for what cannot be said in it."""
    thinking, budget = _thinking(prompt, model)
    most = prompt.max_output_tokens or max_output_tokens(model)
    body: dict[str, Any] = {
        "model": model,
        "messages": _messages(prompt, model, issuer),
        # The budget counts as output, so the default leaves the answer room beside it.
        "max_tokens": most or DEFAULT_MAX_OUTPUT_TOKENS + budget,
        "stream": True,
    }
    if system := _system(prompt):
        body["system"] = system
    if thinking is not None:
        body["thinking"] = thinking
    if prompt.tools:
        body["tools"] = [_tool(tool) for tool in prompt.tools]
    if choice := _tool_choice(prompt):
        body["tool_choice"] = choice
    if prompt.stop:
        body["stop_sequences"] = list(prompt.stop)
    if (wanted := prompt.response_format) is not None:
        if isinstance(wanted, JsonFormat):
            rule = "this provider takes a JSON schema, not JSON without one"
            raise unsupported(model, "JSON", "prompt.response_format.json", rule)
        body["output_config"] = {"format": {"type": "json_schema", "schema": json.loads(wanted.schema_json)}}
    return body | _sampling(prompt, model)


def _sampling(prompt: Prompt, model: str) -> dict[str, Any]:
    given = prompt.sampling
    for name in ("frequency_penalty", "presence_penalty", "seed"):
        if getattr(given, name) is not None:
            rule = f"this provider does not know {name}"
            raise unsupported(model, name, f"prompt.sampling.{name}", rule)
    if given.temperature is not None and given.temperature > 1:
        rule = "this provider takes at most 1"
        raise unsupported(model, "temperature", "prompt.sampling.temperature", rule)
    names = ("temperature", "top_p", "top_k")
    return {name: value for name in names if (value := getattr(given, name)) is not None}


def _thinking(prompt: Prompt, model: str) -> tuple[dict[str, Any] | None, int]:
    options = prompt.reasoning
    if options is None:
        return None, 0
    budget = options.budget_tokens
    if budget is None and options.effort is not None:
        budget = _BUDGET.get(options.effort, 0)
    if budget is None:
        return None, 0
    if budget == 0:
        return {"type": "disabled"}, 0
    if prompt.max_output_tokens is not None and budget >= prompt.max_output_tokens:
        rule = "must be below max_output_tokens, which includes the reasoning"
        raise unsupported(model, "REASONING", "prompt.reasoning.budget_tokens", rule)
    return {"type": "enabled", "budget_tokens": budget}, budget


def _tool(tool: ToolDefinition) -> dict[str, Any]:
    schema = json.loads(tool.parameters_schema_json) if tool.parameters_schema_json else {"type": "object"}
    made: dict[str, Any] = {"name": tool.name, "input_schema": schema}
    if tool.description:
        made["description"] = tool.description
    if tool.strict:
        made["strict"] = True
    return made


def _tool_choice(prompt: Prompt) -> dict[str, Any] | None:
    given, parallel = prompt.tool_choice, prompt.parallel_tool_calls
    if given is None and parallel is None:
        return None
    choice: dict[str, Any] = {"type": "auto"}
    if given is not None:
        named = given.mode is ToolChoiceMode.NAMED
        choice = {"type": "tool", "name": given.name} if named else {"type": _CHOICE[given.mode]}
    if parallel is not None and choice["type"] != "none":
        choice["disable_parallel_tool_use"] = not parallel
    return choice


def _system(prompt: Prompt) -> str | list[dict[str, Any]]:
    """Instructions in one place: the provider takes them beside the messages."""
    parts: list[Part] = [Text(prompt.system)] if prompt.system else []
    parts += [part for message in prompt.messages if message.role is Role.SYSTEM for part in message.parts]
    texts = [part for part in parts if isinstance(part, Text) and part.text]
    if not any(part.cache_breakpoint for part in texts):
        return "\n\n".join(part.text for part in texts)
    return [_marked({"type": "text", "text": part.text}, part) for part in texts]


def _messages(prompt: Prompt, model: str, issuer: str) -> list[dict[str, Any]]:
    """User and assistant in turns: neighbours of one side become one message."""
    messages: list[dict[str, Any]] = []
    for index, message in enumerate(prompt.messages):
        if message.role is Role.SYSTEM:
            continue
        role = "assistant" if message.role is Role.ASSISTANT else "user"
        blocks = list(_blocks(message.parts, model, issuer, f"prompt.messages[{index}]"))
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += blocks
        elif blocks:
            messages.append({"role": role, "content": blocks})
    return messages


def _blocks(parts: Iterable[Part], model: str, issuer: str, path: str) -> Iterable[dict[str, Any]]:
    for at, part in enumerate(parts):
        block = _block(part, model, issuer, f"{path}.parts[{at}]")
        if block is not None:
            yield _marked(block, part)


def _marked(block: dict[str, Any], part: Part) -> dict[str, Any]:
    if part.cache_breakpoint:
        block["cache_control"] = {"type": "ephemeral"}
    return block


def _block(part: Part, model: str, issuer: str, path: str) -> dict[str, Any] | None:
    """None for what is not said to this provider: empty text, others' reasoning, citations."""
    match part:
        case Text(text=text) | Refusal(text=text):
            return {"type": "text", "text": text} if text else None
        case Image(media=media):
            return {"type": "image", "source": _source(media)}
        case ToolCall():
            return {"type": "tool_use", "id": part.call_id, "name": part.name, "input": _input(part)}
        case ToolResult():
            content = list(_blocks(part.parts, model, issuer, f"{path}.tool_result"))
            result: dict[str, Any] = {"type": "tool_result", "tool_use_id": part.call_id}
            if content:
                result["content"] = content
            if part.is_error:
                result["is_error"] = True
            return result
        case Reasoning() if part.issuer == issuer:
            return _thought(part, path)
        case Opaque() if part.issuer == issuer:
            return _own_block(part, path)
        case Audio() | Document():
            raise unsupported_part(model, part, path)
    return None


def _source(media: Media) -> dict[str, Any]:
    if media.data is None:
        return {"type": "url", "url": media.uri or ""}
    data = base64.b64encode(media.data).decode()
    return {"type": "base64", "media_type": media.mime_type, "data": data}


def _input(call: ToolCall) -> Any:
    """The arguments as an object; what the model got wrong is shown to it as it was."""
    try:
        value = json.loads(call.arguments_json or "{}")
    except ValueError:
        return {"invalid_json": call.arguments_json}
    return value if isinstance(value, dict) else {"invalid_json": call.arguments_json}


def _thought(part: Reasoning, path: str) -> dict[str, Any] | None:
    try:
        if part.redacted is not None:
            return {"type": "redacted_thinking", "data": part.redacted.decode()}
        if not part.signature:
            return None  # without its proof the provider refuses it
        return {"type": "thinking", "thinking": part.text or "", "signature": part.signature.decode()}
    except UnicodeDecodeError:
        raise malformed(f"{path}.reasoning", "must be as the issuer wrote it") from None


def _own_block(part: Opaque, path: str) -> dict[str, Any]:
    try:
        return dict(json.loads(part.data))
    except (ValueError, TypeError):
        raise malformed(f"{path}.opaque.data", "must be as the issuer wrote it") from None
