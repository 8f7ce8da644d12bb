"""Chat Completions requests said in Janus's words, as a client of Janus would that has the same to say."""

import base64
import json
from collections.abc import Mapping
from typing import Any

from janus_inference.dialects.schemas import can_hold
from janus_inference.model import (
    Audio,
    Document,
    Effort,
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
    Sampling,
    Text,
    ToolCall,
    ToolChoice,
    ToolChoiceMode,
    ToolDefinition,
    ToolResult,
)
from janus_inference.profiles import ChatProfile, EffortForm

ISSUER = "recorded"
# Fields that Janus sets by itself; of several answers it asks for one.
OURS = frozenset({"model", "stream", "stream_options", "n"})
_SAMPLING = ("temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty")
_TOOL_FIELDS = {"name", "description", "parameters", "strict"}
_EFFORTS = {each.value for each in Effort}


class Outside(Exception):
    """The request says something that the contract has no words for; the text is the provider's word for it."""


def prompt_of(request: Mapping[str, Any], profile: ChatProfile) -> tuple[Prompt, dict[str, Any]]:
    """The request in Janus's words, and the options: what is left over of it."""
    model = str(request["model"])
    left = {name: value for name, value in request.items() if name not in OURS and value is not None}
    if request.get("n") not in (None, 1):
        raise Outside("n")
    tools = left.pop("tools", [])
    said = [tool for tool in tools if _is_said(tool, model, profile)]
    if own := [tool for tool in tools if tool not in said]:
        left["tools"] = own
    stop = left.pop("stop", ())
    fields: dict[str, Any] = {
        "messages": tuple(_message(each) for each in left.pop("messages")),
        "tools": tuple(_definition(tool["function"]) for tool in said),
        "tool_choice": _choice(left),
        "parallel_tool_calls": left.pop("parallel_tool_calls", None),
        "response_format": _format(left, model, profile),
        "sampling": _sampling(left, profile),
        "stop": (stop,) if isinstance(stop, str) else tuple(stop),
        "max_output_tokens": left.pop(profile.max_tokens_field, None),
        "reasoning": _reasoning(left, profile),
    }
    return Prompt(**fields, provider_options_json=json.dumps(left) if left else ""), left


def blocks(content: Any) -> list[dict[str, Any]]:
    """Content in the form of blocks, whichever form it has."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content or [])


def sound(block: Mapping[str, Any]) -> str:
    """The sound of a block in base64; some clients write it as an address that holds it."""
    return str(block["input_audio"]["data"]).rpartition(",")[2]


def _message(said: Mapping[str, Any]) -> Message:
    parts = tuple(map(_part, blocks(said.get("content"))))
    if said["role"] == "tool":
        return Message(Role.TOOL, (ToolResult(said["tool_call_id"], parts),))
    before: list[Part] = [
        Reasoning(text=said[name], issuer=ISSUER) for name in ("reasoning_content", "reasoning") if said.get(name)
    ]
    if details := said.get("reasoning_details"):
        before.append(Opaque(ISSUER, "reasoning_details", json.dumps(details).encode()))
    after: list[Part] = [Refusal(said["refusal"])] if said.get("refusal") else []
    for call in said.get("tool_calls") or []:
        if call["type"] != "function":
            raise Outside(call["type"])
        after.append(ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"]))
    role = Role.SYSTEM if said["role"] == "developer" else Role(said["role"])
    return Message(role, (*before, *parts, *after), name=said.get("name") or "")


def _part(block: Mapping[str, Any]) -> Part:
    """In the contract's words, or else as the provider's own."""
    mark = "cache_control" in block
    match block["type"]:
        case "text":
            return Text(block["text"], mark)
        case "image_url" if block["image_url"].get("detail") in (None, "auto"):
            return Image(_media(block["image_url"]["url"]), mark)
        case "input_audio":
            kind = f"audio/{block['input_audio']['format']}"
            return Audio(Media(kind, data=base64.b64decode(sound(block))), mark)
        case "file" if "file_data" in block["file"]:
            return Document(_media(block["file"]["file_data"]), block["file"].get("filename") or "", mark)
        case "refusal":
            return Refusal(block["refusal"])
    return Opaque(ISSUER, block["type"], json.dumps(block).encode(), mark)


def _media(address: str) -> Media:
    if not address.startswith("data:"):
        return Media("", uri=address)
    kind, _, data = address.removeprefix("data:").partition(";base64,")
    return Media(kind, data=base64.b64decode(data))


def _is_said(tool: Mapping[str, Any], model: str, profile: ChatProfile) -> bool:
    """Whether the contract has all the words for a tool; others travel as the provider's own."""
    if tool["type"] != "function" or tool.keys() != {"type", "function"} or tool["function"].keys() - _TOOL_FIELDS:
        return False
    # Janus refuses a promise that a server does not make.
    return not tool["function"].get("strict") or (profile.strict_tools and can_hold(model, profile))


def _definition(function: Mapping[str, Any]) -> ToolDefinition:
    schema = function.get("parameters")
    return ToolDefinition(
        function["name"],
        function.get("description") or "",
        "" if schema is None else json.dumps(schema),
        bool(function.get("strict")),
    )


def _choice(left: dict[str, Any]) -> ToolChoice | None:
    match left.pop("tool_choice", None):
        case None:
            return None
        case str(word):
            return ToolChoice(ToolChoiceMode(word))
        case {"type": "function", "function": {"name": str(name)}}:
            return ToolChoice(ToolChoiceMode.NAMED, name)
        case _:
            raise Outside("tool_choice")


def _format(left: dict[str, Any], model: str, profile: ChatProfile) -> JsonFormat | JsonSchemaFormat | None:
    match left.get("response_format"):
        case {"type": "json_object"}:
            del left["response_format"]
            return JsonFormat()
        case {"type": "json_schema", "json_schema": dict(about)} if can_hold(model, profile):
            del left["response_format"]
            schema, description = json.dumps(about["schema"]), about.get("description") or ""
            return JsonSchemaFormat(about["name"], schema, description, bool(about.get("strict")))
    return None


def _sampling(left: dict[str, Any], profile: ChatProfile) -> Sampling:
    given = {name: left.pop(name) for name in _SAMPLING if name in left and (name != "top_k" or profile.extra_sampling)}
    if profile.seed_field in left:
        given["seed"] = left.pop(profile.seed_field)
    if left.get("logprobs") is True and "top_logprobs" in left and profile.logprobs:
        del left["logprobs"]
        given["top_logprobs"] = left.pop("top_logprobs")
    return Sampling(**given)


def _reasoning(left: dict[str, Any], profile: ChatProfile) -> ReasoningOptions | None:
    """How much to think, where it is said in the server's usual form and no other beside it."""
    match profile.effort, left.get(profile.effort.value.partition(",")[0]):
        case EffortForm.WORD | EffortForm.WORD_TEMPLATE, str(word) if word in _EFFORTS:
            del left["reasoning_effort"]
            return ReasoningOptions(Effort(word))
        case EffortForm.OBJECT, {"effort": word, **more} if word in _EFFORTS and not more:
            del left["reasoning"]
            return ReasoningOptions(Effort(word))
        case EffortForm.OBJECT, {"max_tokens": int(most), **more} if most and not more:
            del left["reasoning"]
            return ReasoningOptions(budget_tokens=most)
        case EffortForm.SWITCH, {"type": word, **more} if not more:
            del left["thinking"]
            return ReasoningOptions(Effort.NONE if word == "disabled" else Effort.HIGH)
    return None
