"""Recorded Chat Completions requests, said in Janus's words: built by the adapter, of the SDK's type, nothing lost."""

import base64
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.fakes.providers.responses_recordings import RECORDINGS
from tests.fakes.providers.typed_requests import adapter

from janus_inference.adapters.options import with_options
from janus_inference.dialects.openai_chat_request import RESERVED, chat_body
from janus_inference.model import (
    Audio,
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
from janus_inference.profiles import OPENAI, ChatProfile, chat_profile
from janus_inference.validation import validate

pytestmark = pytest.mark.skipif(not RECORDINGS.exists(), reason="the recordings are not part of the repository")

ISSUER = "recorded"
# What the contract has no words for, by the word that the request has for it.
OUTSIDE = {
    "file_id": "a file that the provider holds",
    "video_url": "moving pictures",
    "document_url": "a document block of Mistral's own",
}
# Options that Janus sets by itself, or says with a word of its own in a later test.
LEFT = ("model", "messages", "tools", "stream", "stream_options", "n", "tool_choice")


class Outside(Exception):
    """The request says something that the contract has no words for."""


def media(address: str) -> Media:
    if not address.startswith("data:"):
        return Media("", uri=address)
    kind, _, data = address[5:].partition(";base64,")
    return Media(kind, data=base64.b64decode(data))


def part(block: dict[str, Any]) -> Part:
    match block["type"]:
        case "text":
            return Text(block["text"], "cache_control" in block)
        case "image_url":
            return Image(media(block["image_url"]["url"]))
        case "input_audio":
            sound = block["input_audio"]
            return Audio(Media(f"audio/{sound['format']}", data=base64.b64decode(sound["data"].rpartition(",")[2])))
        case "file" if "file_id" not in block["file"]:
            return Document(media(block["file"]["file_data"]), block["file"].get("filename") or "")
        case "file":
            raise Outside("file_id")
        case kind:
            raise Outside(kind)


def blocks(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content or [])


def message_of(said: dict[str, Any]) -> Message:
    parts = tuple(map(part, blocks(said.get("content"))))
    if said["role"] == "tool":
        return Message(Role.TOOL, (ToolResult(said["tool_call_id"], parts),))
    thoughts = [said[name] for name in ("reasoning_content", "reasoning") if said.get(name)]
    before: list[Part] = [Reasoning(text=text, issuer=ISSUER) for text in thoughts]
    if details := said.get("reasoning_details"):
        before.append(Opaque(ISSUER, "reasoning_details", json.dumps(details).encode()))
    calls = [
        ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in said.get("tool_calls") or []
    ]
    role = Role.SYSTEM if said["role"] == "developer" else Role(said["role"])
    return Message(role, (*before, *parts, *calls), name=said.get("name") or "")


def definition(function: dict[str, Any]) -> ToolDefinition:
    schema = function.get("parameters")
    return ToolDefinition(
        function["name"],
        function.get("description") or "",
        json.dumps(schema) if schema else "",
        bool(function.get("strict")),
    )


def prompt_of(request: dict[str, Any]) -> tuple[Prompt, dict[str, Any]]:
    """The request in Janus's words, and the options that it has no words for."""
    tools = request.get("tools") or []
    functions = [tool for tool in tools if tool["type"] == "function"]
    prompt = Prompt(
        tuple(map(message_of, request["messages"])),
        tools=tuple(definition(tool["function"]) for tool in functions),
    )
    options = {name: value for name, value in request.items() if name not in LEFT and value is not None}
    own = [tool for tool in tools if tool not in functions]
    return prompt, options | ({"tools": own} if own else {})


def words(messages: list[dict[str, Any]]) -> Iterator[str]:
    """Everything that is said, in order, whatever it looks like."""
    for said in messages:
        role = "system" if said["role"] == "developer" else said["role"]
        text = "".join(block["text"] for block in blocks(said.get("content")) if block["type"] == "text")
        yield f"{role} {text}"
        for block in blocks(said.get("content")):
            if block["type"] != "text":
                yield next(
                    word
                    for word in (
                        block.get("image_url", {}).get("url"),
                        block.get("input_audio", {}).get("data", "").rpartition(",")[2],
                        block.get("file", {}).get("file_data"),
                    )
                    if word
                )
        for call in said.get("tool_calls") or []:
            function = call["function"]
            yield f"{call['id']} {function['name']} {function['arguments']}"
        yield from filter(None, (said.get("tool_call_id"), said.get("name")))


def schemas(tools: list[dict[str, Any]]) -> list[str]:
    """The functions among tools, whatever else is said of them."""
    found = []
    for tool in tools:
        if tool["type"] == "function":
            function = tool["function"]
            schema = {"type": "object", "properties": {}} | (function.get("parameters") or {})
            found.append(json.dumps([function["name"], function.get("description") or "", schema], sort_keys=True))
    return sorted(found)


def profile_for(exchange: dict[str, Any]) -> ChatProfile:
    if exchange["provider"] == "openai":
        return OPENAI
    # Some take `strict` and promise nothing for it, so their profiles refuse it.
    return replace(chat_profile(exchange["host"]), strict_tools=True, json_schema=True)


def test_recorded_requests_can_be_said_and_lose_nothing() -> None:
    lines = RECORDINGS.read_text(encoding="utf-8").splitlines()
    recorded = [
        each for each in map(json.loads, lines) if each["path"].endswith("/chat/completions") and each["request"]
    ]
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
            body = chat_body(prompt, request["model"], profile_for(exchange), ISSUER)
            body |= with_options(body, options, RESERVED, lists=("tools",))
            if exchange["host"] == "api.openai.com":
                adapter("openai").dump_python(adapter("openai").validate_python(body))
            assert list(words(body["messages"])) == list(words(request["messages"]))
            assert schemas(body.get("tools", [])) == schemas(request.get("tools") or [])
            for name, value in options.items():
                assert name == "tools" or body[name] == value
        except Exception as error:  # noqa: BLE001 - every one is reported
            wrong[exchange["id"]] = f"{type(error).__name__} {str(error)[:400]}"
            continue
        passed += 1
    print(f"openai_chat: {passed} of {len(recorded)} recorded requests are built; outside: {dict(outside)}")  # noqa: T201
    assert not wrong, json.dumps(wrong, indent=1)
    assert outside.keys() <= OUTSIDE.keys()
    assert passed
