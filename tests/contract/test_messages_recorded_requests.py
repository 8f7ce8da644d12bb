"""Recorded Messages requests, said in Janus's words: built by the adapter, of the SDK's type, with nothing lost."""

import json
from typing import Any

import pytest
from tests.fakes.providers.messages_prompts import ISSUER, blocks, prompt_of
from tests.fakes.providers.responses_recordings import RECORDINGS
from tests.fakes.providers.typed_requests import adapter

from janus_inference.adapters.anthropic import with_own
from janus_inference.dialects.anthropic_request import messages_body
from janus_inference.validation import validate

pytestmark = [
    pytest.mark.skipif(not RECORDINGS.exists(), reason="needs ../shared/recordings beside the checkout"),
    pytest.mark.filterwarnings("ignore:TypedDict class:UserWarning"),
]

# Compared in a form of their own, or always Janus's.
APART = {"messages", "system", "tools", "stream"}


def plain(block: dict[str, Any]) -> dict[str, Any]:
    """A block in one of the forms that mean the same: nothing in it that goes without saying."""
    said = {name: value for name, value in block.items() if value is not None}
    if "cache_control" in said:
        said["cache_control"] = True
    if said.get("caller") == {"type": "direct"}:
        del said["caller"]
    if said["type"] == "text" and not said.get("citations"):
        said.pop("citations", None)
    if said["type"] == "tool_result":
        said["content"] = spoken(said.get("content"))
        said["is_error"] = bool(said.get("is_error"))
    return said


def spoken(content: Any) -> list[dict[str, Any]]:
    return [plain(block) for block in blocks(content) if block["type"] != "text" or block["text"].strip()]


def turns(request: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """What is said by whom, neighbours of one side together; instructions in words are said apart."""
    found: list[tuple[str, list[dict[str, Any]]]] = []
    for message in request["messages"]:
        content = spoken(message["content"])
        if is_instruction(message) or not content:
            continue
        if found and found[-1][0] == message["role"]:
            found[-1][1].extend(content)
        else:
            found.append((message["role"], content))
    return found


def is_instruction(message: dict[str, Any]) -> bool:
    return message["role"] == "system" and all(block["type"] == "text" for block in blocks(message["content"]))


def instructions(request: dict[str, Any]) -> str:
    """All of them, wherever they stand, since Janus says them first."""
    later = [spoken(message["content"]) for message in request["messages"] if is_instruction(message)]
    return "\n\n".join(block["text"] for content in (spoken(request.get("system")), *later) for block in content)


def tools(request: dict[str, Any]) -> list[str]:
    """Each tool as one text, in order of these."""
    found = []
    for tool in request.get("tools") or []:
        said = {name: value for name, value in tool.items() if value and (name, value) != ("type", "custom")}
        if "input_schema" in said:
            said["input_schema"] = {"properties": {}, **said["input_schema"]}
        found.append(json.dumps(said, sort_keys=True))
    return sorted(found)


def other_fields(request: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in request.items() if name not in APART and value is not None}


def built(request: dict[str, Any]) -> dict[str, Any]:
    """The body that Janus makes of it, after the checks that every prompt passes."""
    prompt, options = prompt_of(request)
    validate(prompt)
    return with_own(messages_body(prompt, request["model"], ISSUER), options)


def check_type(body: dict[str, Any]) -> bool:
    """Whether the API itself takes it; raises where its beta, with a header that an operator sets, does not either."""
    # The API takes these for the models that have them; the SDK's types no longer do.
    typed = {name: value for name, value in body.items() if name not in ("temperature", "top_p", "top_k")}
    try:
        walk("anthropic", typed)
    except ValueError:
        walk("anthropic beta", typed)
        return False
    return True


def walk(kind: str, body: dict[str, Any]) -> None:
    # Iterables are validated lazily; dumping walks through them.
    adapter(kind).dump_python(adapter(kind).validate_python(body))


def test_recorded_requests_can_be_said_and_lose_nothing() -> None:
    lines = RECORDINGS.read_text(encoding="utf-8").splitlines()
    recorded = [
        each
        for each in map(json.loads, lines)
        if each["provider"] == "anthropic" and each["path"].endswith("/messages") and each["request"]
    ]
    wrong, beta = dict[str, str](), list[str]()
    for exchange in recorded:
        request = exchange["request"]
        try:
            body = built(request)
            if not check_type(body):
                beta.append(exchange["id"])
            assert turns(body) == turns(request)
            assert instructions(body) == instructions(request)
            assert tools(body) == tools(request)
            assert other_fields(body) == other_fields(request)
            assert body["stream"] is True
        except Exception as error:  # noqa: BLE001 - every one is reported
            wrong[exchange["id"]] = f"{type(error).__name__} {str(error)[:300]}"
    print(f"anthropic_messages requests: {len(recorded) - len(wrong)} of {len(recorded)}, of the beta: {beta}")  # noqa: T201
    assert not wrong, json.dumps(wrong, indent=1)
    assert recorded
