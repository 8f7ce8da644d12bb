"""Messages requests said in Janus's words, as a client of Janus would that has the same to say."""

import base64
import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from janus_inference.families import family
from janus_inference.model import (
    Citation,
    Document,
    Effort,
    Image,
    JsonSchemaFormat,
    Media,
    Message,
    Opaque,
    Part,
    Prompt,
    Reasoning,
    ReasoningOptions,
    Role,
    Sampling,
    Text,
    ToolCall,
    ToolChoice,
    ToolChoiceMode,
    ToolDefinition,
    ToolResult,
)

ISSUER = "anthropic"
_MODES = {"auto": ToolChoiceMode.AUTO, "none": ToolChoiceMode.NONE, "any": ToolChoiceMode.REQUIRED}
# A definition with more than these is said as a tool of the provider's own.
_TOOL_FIELDS = {"name", "description", "input_schema", "strict"}


class _Unsaid(Exception):
    """The block says something that the contract has no words for."""


def prompt_of(request: Mapping[str, Any]) -> tuple[Prompt, dict[str, Any]]:
    """The request in Janus's words, and the options: what is left over of it."""
    left = {name: value for name, value in request.items() if value is not None}
    for name in ("model", "stream"):
        left.pop(name, None)
    system = left.pop("system", "")
    opening = [] if isinstance(system, str) else [Message(Role.SYSTEM, _parts(system))]
    tools = [_definition(tool) for tool in left.get("tools", []) if _is_function(tool)]
    own = [tool for tool in left.pop("tools", []) if not _is_function(tool)]
    choice, parallel = _choice(left, {tool.name for tool in tools})
    output = dict(left.pop("output_config", {}))
    reasoning, form = _reasoning(left, output, str(request["model"])), _format(output)
    fields: dict[str, Any] = {
        "messages": (*opening, *_joined([each for said in left.pop("messages") for each in _messages(said)])),
        "system": system if isinstance(system, str) else "",
        "tools": tuple(tools),
        "tool_choice": choice,
        "parallel_tool_calls": parallel,
        "response_format": form,
        "sampling": Sampling(**{name: left.pop(name, None) for name in ("temperature", "top_p", "top_k")}),
        "stop": tuple(left.pop("stop_sequences", ())),
        "max_output_tokens": left.pop("max_tokens"),
        "reasoning": reasoning,
    }
    options = left | ({"tools": own} if own else {}) | ({"output_config": output} if output else {})
    return Prompt(**fields, provider_options_json=json.dumps(options) if options else ""), options


def blocks(content: Any) -> list[dict[str, Any]]:
    """Content in its long form."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content or [])


def _joined(messages: list[Message]) -> list[Message]:
    """With an assistant's neighbours as one message, whose calls the message after it answers together."""
    joined: list[Message] = []
    for message in messages:
        if joined and joined[-1].role is message.role is Role.ASSISTANT:
            before = joined.pop().parts
            moved = (
                replace(part, part_index=part.part_index + len(before)) if isinstance(part, Citation) else part
                for part in message.parts
            )
            message = Message(Role.ASSISTANT, (*before, *moved))
        joined.append(message)
    return joined


def _messages(said: Mapping[str, Any]) -> list[Message]:
    """One message, or two where a user's also has results of tools."""
    parts = _parts(blocks(said["content"]))
    if said["role"] != "user":
        return [Message(Role(said["role"]), parts)]
    results = tuple(each for each in parts if isinstance(each, ToolResult))
    rest = tuple(each for each in parts if not isinstance(each, ToolResult))
    return [Message(role, each) for role, each in ((Role.TOOL, results), (Role.USER, rest)) if each]


def _parts(said: list[dict[str, Any]]) -> tuple[Part, ...]:
    """The parts of all blocks; sources come after them, as in an answer."""
    parts: list[Part] = []
    cited: list[Part] = []
    for block in said:
        cited += [
            Citation(quote=each["cited_text"], part_index=len(parts), issuer=ISSUER, data=json.dumps(each).encode())
            for each in block.get("citations") or ()
            if block["type"] == "text"
        ]
        parts += _block(block)
    return (*parts, *cited)


def _block(block: dict[str, Any]) -> list[Part]:
    """In the contract's words, or else as the provider's own."""
    try:
        return _said(block)
    except _Unsaid:
        return [Opaque(ISSUER, block["type"], json.dumps(block).encode(), block.get("cache_control") is not None)]


def _said(block: dict[str, Any]) -> list[Part]:
    mark = block.get("cache_control") is not None
    match block["type"]:
        case "text":
            _only(block, {"text", "citations"})
            return [Text(block["text"], mark)]
        case "image":
            _only(block, {"source"})
            return [Image(_media(block["source"]), mark)]
        case "document":
            _only(block, {"source", "title", "citations"})
            cites = bool((block.get("citations") or {}).get("enabled"))
            return [Document(_media(block["source"]), block.get("title") or "", mark, cites)]
        case "tool_use":
            _only(block, {"id", "name", "input", "caller", "toolset_name"})
            about = {name: block[name] for name in ("id", "caller", "toolset_name") if name in block}
            before = [Opaque(ISSUER, "tool_use", json.dumps(about).encode())] if len(about) > 1 else []
            return [*before, ToolCall(block["id"], block["name"], json.dumps(block["input"]), mark)]
        case "tool_result":
            _only(block, {"tool_use_id", "content", "is_error"})
            inner = _parts(blocks(block.get("content")))
            return [ToolResult(block["tool_use_id"], inner, bool(block.get("is_error")), mark)]
        case "thinking":
            return [Reasoning(text=block["thinking"], signature=block["signature"].encode(), issuer=ISSUER)]
        case "redacted_thinking":
            return [Reasoning(redacted=block["data"].encode(), issuer=ISSUER)]
    raise _Unsaid


def _only(block: Mapping[str, Any], known: Collection[str]) -> None:
    for name, value in block.items():
        if name not in known and name not in ("type", "cache_control") and value is not None:
            raise _Unsaid


def _media(source: Mapping[str, Any]) -> Media:
    match source["type"]:
        case "base64":
            return Media(source["media_type"], data=base64.b64decode(source["data"]))
        case "url":
            return Media("", uri=source["url"])
        case "text":
            return Media("text/plain", data=source["data"].encode())
    raise _Unsaid


def _is_function(tool: Mapping[str, Any]) -> bool:
    said = {name for name, value in tool.items() if value is not None}
    return "input_schema" in tool and said - {"type"} <= _TOOL_FIELDS and tool.get("type") in (None, "custom")


def _definition(tool: Mapping[str, Any]) -> ToolDefinition:
    schema = json.dumps(tool["input_schema"])
    return ToolDefinition(tool["name"], tool.get("description") or "", schema, bool(tool.get("strict")))


def _choice(left: dict[str, Any], names: Collection[str]) -> tuple[ToolChoice | None, bool | None]:
    """The rule for calling tools; it stays an option where it is about the provider's own alone."""
    said = left.get("tool_choice")
    if said is None or (said["type"] == "any" and not names) or (said["type"] == "tool" and said["name"] not in names):
        return None, None
    del left["tool_choice"]
    alone = said.get("disable_parallel_tool_use")
    named = said["type"] == "tool"
    choice = ToolChoice(ToolChoiceMode.NAMED, said["name"]) if named else ToolChoice(_MODES[said["type"]])
    return choice, None if alone is None else not alone


def _reasoning(left: dict[str, Any], output: dict[str, Any], model: str) -> ReasoningOptions | None:
    """How much to think, where the contract says it as this provider does; else it stays an option."""
    said, known = left.get("thinking"), family(model)
    asked: ReasoningOptions | None = None
    match said:
        case {"type": "enabled", "budget_tokens": budget, **rest} if not rest:
            asked = ReasoningOptions(budget_tokens=budget)
        case {"type": "disabled"}:
            asked = ReasoningOptions(budget_tokens=0)
        case {"type": "adaptive", **rest} if output.get("effort") in ("low", "medium", "high") and known.adaptive:
            shown = rest.get("display") == "summarized"
            asked = ReasoningOptions(Effort(output.pop("effort")), summary=shown)
        case {"type": "adaptive", "display": "summarized"} if known.adaptive and not known.budgets:
            asked = ReasoningOptions(summary=True)
    if asked is not None:
        del left["thinking"]
    return asked


def _format(output: dict[str, Any]) -> JsonSchemaFormat | None:
    said = output.pop("format", None)
    return said and JsonSchemaFormat("answer", json.dumps(said["schema"]), strict=True)
