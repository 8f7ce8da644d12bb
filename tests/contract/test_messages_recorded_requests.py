"""Recorded Messages requests, said in Janus's words: built by the adapter, of the SDK's type, with nothing lost."""

import base64
import json
from collections import Counter
from typing import Any

import pytest
from tests.fakes.providers.responses_recordings import RECORDINGS
from tests.fakes.providers.typed_requests import adapter

from janus_inference.adapters.options import with_options
from janus_inference.dialects.anthropic_request import RESERVED, messages_body
from janus_inference.model import (
    Document,
    Image,
    Media,
    Message,
    Opaque,
    Part,
    Prompt,
    Reasoning,
    Role,
    Text,
    ToolCall,
    ToolDefinition,
    ToolResult,
)
from janus_inference.validation import validate

pytestmark = pytest.mark.skipif(not RECORDINGS.exists(), reason="the recordings are not part of the repository")

ISSUER = "anthropic"
# What the contract has no words for, by the word that the request has for it.
OUTSIDE = {
    "tool_reference": "a reference to a tool whose definition is loaded later",
    "tool_addition": "tools that a system message adds later",
    "container_upload": "a file in the provider's container",
    "file": "a file that the provider holds",
    "mcp_servers": "of the beta API, whose header nobody sets",
    "context_management": "of the beta API, whose header nobody sets",
    "task_budget": "of the beta API, whose header nobody sets",
}
# What a definition of a tool has a place for; one with more is said as the provider's own.
TOOL_FIELDS = {"name", "description", "input_schema", "strict", "cache_control", "eager_input_streaming", "type"}


class Outside(Exception):
    """The request says something that the contract has no words for."""


def media(source: dict[str, Any]) -> Media:
    match source["type"]:
        case "base64":
            return Media(source["media_type"], data=base64.b64decode(source["data"]))
        case "url":
            return Media("", uri=source["url"])
        case "text":
            return Media("text/plain", data=source["data"].encode())
    raise Outside(source["type"])


def part(block: dict[str, Any]) -> Part:
    mark = "cache_control" in block
    match block["type"]:
        case "text":
            return Text(block["text"], mark)
        case "image":
            return Image(media(block["source"]), mark)
        case "document":
            return Document(media(block["source"]), block.get("title") or "", mark)
        case "tool_use":
            return ToolCall(block["id"], block["name"], json.dumps(block["input"]), mark)
        case "tool_result":
            inner = tuple(map(part, blocks(block.get("content") or [])))
            return ToolResult(block["tool_use_id"], inner, bool(block.get("is_error")), mark)
        case "thinking":
            return Reasoning(text=block["thinking"], signature=block["signature"].encode(), issuer=ISSUER)
        case "redacted_thinking":
            return Reasoning(redacted=block["data"].encode(), issuer=ISSUER)
        case kind if kind in OUTSIDE:
            raise Outside(kind)
        case kind:
            return Opaque(ISSUER, kind, json.dumps(block).encode())


def blocks(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def messages_of(request: dict[str, Any]) -> list[Message]:
    found: list[Message] = []
    for said in request["messages"]:
        parts = [part(block) for block in blocks(said["content"])]
        if said["role"] != "user":
            found.append(Message(Role(said["role"]), tuple(parts)))
            continue
        results = tuple(each for each in parts if isinstance(each, ToolResult))
        rest = tuple(each for each in parts if not isinstance(each, ToolResult))
        found += [Message(role, each) for role, each in ((Role.TOOL, results), (Role.USER, rest)) if each]
    return found


def prompt_of(request: dict[str, Any]) -> tuple[Prompt, dict[str, Any]]:
    """The request in Janus's words, and the options that it has no words for."""
    said = dict(request)
    if outside := OUTSIDE.keys() & (said.keys() | (said.get("output_config") or {}).keys()):
        raise Outside(min(outside))
    system = said.pop("system", "")
    opening = [Message(Role.SYSTEM, tuple(map(part, system)))] if isinstance(system, list) else []
    tools = said.pop("tools", None) or []
    functions = [tool for tool in tools if "input_schema" in tool and tool.keys() <= TOOL_FIELDS]
    prompt = Prompt(
        (*opening, *messages_of(said)),
        system=system if isinstance(system, str) else "",
        tools=tuple(
            ToolDefinition(
                tool["name"], tool.get("description") or "", json.dumps(tool["input_schema"]), bool(tool.get("strict"))
            )
            for tool in functions
        ),
        max_output_tokens=said.pop("max_tokens"),
    )
    own = [tool for tool in tools if tool not in functions]
    left = {name: value for name, value in said.items() if name not in ("model", "messages", "stream", "tool_choice")}
    return prompt, left | ({"tools": own} if own else {})


def words(content: Any) -> list[str]:
    """Everything that is said in blocks, in order, whatever they look like."""
    found: list[str] = []
    for block in blocks(content or []):
        match block["type"]:
            case "text":
                found += [block["text"]] if block["text"].strip() else []
            case "tool_use":
                found += [block["id"], block["name"], json.dumps(block["input"], sort_keys=True)]
            case "tool_result":
                found += [block["tool_use_id"], *words(block.get("content"))]
            case "thinking":
                found += [block["thinking"], block["signature"]]
            case "image" | "document":
                source = block["source"]
                found.append(str(source.get("url") or source.get("data")))
            case _:
                found.append(json.dumps({k: v for k, v in block.items() if k != "cache_control"}, sort_keys=True))
    return found


def conversation(body: dict[str, Any]) -> tuple[list[str], list[tuple[str, str]]]:
    """Instructions, wherever they stand, since Janus says them first; and what is said by whom."""
    said = [(message["role"], word) for message in body["messages"] for word in words(message["content"])]
    first = words(body.get("system"))
    instructions = first + [word for role, word in said if role == "system"]
    return ["\n\n".join(instructions)], [each for each in said if each[0] != "system"]


def test_recorded_requests_can_be_said_and_lose_nothing() -> None:
    lines = RECORDINGS.read_text(encoding="utf-8").splitlines()
    recorded = [each for each in map(json.loads, lines) if each["path"].endswith("/messages") and each["request"]]
    outside: Counter[str] = Counter()
    passed, wrong = 0, dict[str, str]()
    for exchange in recorded:
        request = exchange["request"]
        try:
            prompt, options = prompt_of(request)
        except Outside as reason:
            outside[str(reason)] += 1
            continue
        try:
            validate(prompt)
            body = messages_body(prompt, request["model"], ISSUER)
            extra = with_options(body, options, RESERVED, lists=("tools",), objects=("output_config",))
            body |= extra
            # The API takes these for the models that have them; the SDK's types no longer do.
            typed = {name: value for name, value in body.items() if name not in ("temperature", "top_p", "top_k")}
            adapter("anthropic").dump_python(adapter("anthropic").validate_python(typed))
            assert conversation(body) == conversation(request)
            names = [tool.get("name") for tool in request.get("tools") or []]
            assert sorted(map(str, names)) == sorted(str(tool.get("name")) for tool in body.get("tools", []))
            for name, value in options.items():
                assert name in ("tools", "output_config") or body[name] == value
        except Exception as error:  # noqa: BLE001 - every one is reported
            wrong[exchange["id"]] = f"{type(error).__name__} {str(error)[:300]}"
            continue
        passed += 1
    counted = f"{passed} of {len(recorded)} recorded requests are built"
    print(f"anthropic_messages: {counted}; outside the contract: {dict(outside)}")  # noqa: T201
    assert not wrong, json.dumps(wrong, indent=1)
    assert passed
