"""Recorded Chat Completions requests, said in Janus's words: built by the adapter, of the SDK's type, nothing lost.

The recordings are no part of the repository: without `../shared/recordings`
beside the checkout this test is skipped.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from tests.fakes.providers.chat_prompts import ISSUER, OURS, Outside, blocks, prompt_of, sound
from tests.fakes.providers.responses_recordings import RECORDINGS
from tests.fakes.providers.typed_requests import adapter

from janus_inference.adapters.options import with_options
from janus_inference.dialects.openai_chat_request import RESERVED, chat_body
from janus_inference.profiles import OPENAI, ChatProfile, chat_profile
from janus_inference.validation import validate

pytestmark = pytest.mark.skipif(not RECORDINGS.is_file(), reason="needs ../shared/recordings beside the checkout")

# What the contract has no words for, by the provider's word for it.
OUTSIDE = {
    "n": "several answers",
}


def words(messages: list[dict[str, Any]], profile: ChatProfile) -> Iterator[object]:
    """Everything that is said, in order, whatever it looks like."""
    for said in messages:
        content = blocks(said.get("content"))
        yield "system" if said["role"] == "developer" else said["role"]
        yield "".join(block["text"] for block in content if block["type"] == "text")
        for block in content:
            match block["type"]:
                case "image_url" if block["image_url"].get("detail") in (None, "auto"):
                    yield block["image_url"]["url"]
                case "input_audio":
                    yield sound(block), block["input_audio"]["format"]
                case "file" if "file_data" in block["file"]:
                    yield block["file"]["file_data"]
                case kind if kind != "text":
                    yield block
        for call in said.get("tool_calls") or []:
            yield call["id"], call["type"], call["function"]
        names = ("tool_call_id", "name", "refusal", "reasoning_details", profile.reasoning_field)
        yield {name: said[name] for name in names if said.get(name)}


def tools_in(said: Mapping[str, Any]) -> list[str]:
    """All tools, in a form in which what means the same is the same; order means nothing."""
    found = []
    for tool in said.get("tools") or []:
        if "function" in tool:
            function = {name: value for name, value in tool["function"].items() if value}
            function["parameters"] = {"type": "object", "properties": {}} | function.get("parameters", {})
            tool = {**tool, "function": function}
        found.append(json.dumps(tool, sort_keys=True))
    return sorted(found)


def breakpoints(messages: list[dict[str, Any]]) -> list[str]:
    marked = [block for said in messages for block in blocks(said.get("content")) if "cache_control" in block]
    return [block["text"] for block in marked]


def fields(said: Mapping[str, Any]) -> dict[str, Any]:
    """Everything beside the conversation, in a form in which what means the same is the same."""
    found = {name: value for name, value in said.items() if name not in OURS | {"messages", "tools"}}
    if isinstance(found.get("stop"), str):
        found["stop"] = [found["stop"]]
    match found.get("response_format"):
        case {"json_schema": schema}:
            schema = {name: value for name, value in schema.items() if value}
            found["response_format"] = {**found["response_format"], "json_schema": schema}
    if not said.get("tools"):
        # There is nothing to choose from.
        found = {name: value for name, value in found.items() if name not in ("tool_choice", "parallel_tool_calls")}
    return {name: value for name, value in found.items() if value is not None}


def is_typed(body: Mapping[str, Any], options: Mapping[str, Any], host: str) -> None:
    """Raises where it is not what OpenAI's SDK sends; of other servers, what is theirs alone is left out."""
    if host != "api.openai.com":
        own = options.keys() | {"reasoning", "thinking", "chat_template_kwargs", "random_seed", "top_k"}
        functions = [tool for tool in body.get("tools", []) if tool["type"] == "function"]
        body = {name: value for name, value in body.items() if name not in own} | {"tools": functions}
    # Iterables are validated lazily; dumping walks through them.
    adapter("openai").dump_python(adapter("openai").validate_python(body))


def check(exchange: dict[str, Any]) -> None:
    request, host = exchange["request"], exchange["host"]
    profile = OPENAI if exchange["provider"] == "openai" else chat_profile(host)
    prompt, options = prompt_of(request, profile)
    validate(prompt)
    body = chat_body(prompt, request["model"], profile, ISSUER)
    body |= with_options(body, options, RESERVED, lists=("tools",))
    is_typed(body, options, host)
    assert body["model"] == request["model"]
    assert list(words(body["messages"], profile)) == list(words(request["messages"], profile))
    assert tools_in(body) == tools_in(request)
    assert fields(body) == fields(request)
    if profile.cache_control and "claude" in request["model"]:
        assert breakpoints(body["messages"]) == breakpoints(request["messages"])[-4:]


def test_recorded_requests_can_be_said_and_lose_nothing() -> None:
    lines = RECORDINGS.read_text(encoding="utf-8").splitlines()
    recorded = [
        each for each in map(json.loads, lines) if each["path"].endswith("/chat/completions") and each["request"]
    ]
    outside, wrong = dict[str, str](), dict[str, str]()
    for exchange in recorded:
        try:
            check(exchange)
        except Outside as word:
            outside[exchange["id"]] = str(word)
        except Exception as error:  # noqa: BLE001 - every one is reported
            wrong[exchange["id"]] = f"{type(error).__name__} {str(error)[:1000]}"
    built = len(recorded) - len(outside) - len(wrong)
    print(f"openai_chat requests: {built} of {len(recorded)}; outside the contract: {outside}")  # noqa: T201
    assert not wrong, json.dumps(wrong, indent=1)
    assert set(outside.values()) <= OUTSIDE.keys()
    assert built
