"""Real Responses requests, said in Janus's words and written again: they must come out as they were."""

import base64
import json
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from pydantic import TypeAdapter, with_config
from tests.fakes.providers.responses_recordings import ISSUER, RECORDINGS, exchanges, functions, profile_for

from janus_inference.adapters.options import with_options
from janus_inference.dialects.openai_responses_request import LISTS, OBJECTS, RESERVED, responses_body
from janus_inference.model import (
    Document,
    Effort,
    Image,
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
    ToolResult,
)
from janus_inference.profiles import PROFILES

pytestmark = pytest.mark.skipif(not RECORDINGS.is_file(), reason="needs ../shared/recordings beside the checkout")

# Said in a request that is not stateless; Janus's are.
_KEPT_THERE = {"store", "background", "previous_response_id", "conversation", "stream"}


@cache
def params() -> TypeAdapter[Any]:
    from openai.types.responses.response_create_params import ResponseCreateParamsStreaming as Params

    return TypeAdapter(with_config({"extra": "forbid"})(Params))


def media(address: str) -> Media:
    if not address.startswith("data:"):
        return Media("", uri=address)
    kind, _, data = address.removeprefix("data:").partition(";base64,")
    return Media(kind, data=base64.b64decode(data))


def blocks(content: Any) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (Text(content),)
    parts: list[Part] = []
    for block in content:
        if "file_id" in block:
            # A file that the provider holds is a block of its own.
            parts.append(Opaque(ISSUER, block["type"], json.dumps(block).encode()))
            continue
        marked = "prompt_cache_breakpoint" in block
        match block["type"]:
            case "input_text":
                parts.append(Text(block["text"], marked))
            case "input_image":
                parts.append(Image(media(block["image_url"]), marked))
            case "input_file":
                held = media(block.get("file_data") or block["file_url"])
                parts.append(Document(held, block.get("filename", ""), marked))
            case "output_text":
                parts.append(Text(block["text"]))
            case "refusal":
                parts.append(Refusal(block["refusal"]))
    return tuple(parts)


def message_of(item: dict[str, Any]) -> Message:
    """One recorded item in Janus's words."""
    kind = item.get("type", "message")
    if kind == "message":
        role = Role(item["role"])
        about: tuple[Part, ...] = ()
        if item.get("phase"):
            about = (Opaque(ISSUER, "message", json.dumps({"phase": item["phase"]}).encode()),)
        return Message(role, about + blocks(item["content"]))
    if kind == "function_call_output":
        return Message(Role.TOOL, (ToolResult(item["call_id"], blocks(item["output"])),))
    if kind == "function_call":
        extra = {key: item[key] for key in ("call_id", "namespace") if key in item}
        opaque = Opaque(ISSUER, "function_call", json.dumps(extra).encode())
        return Message(Role.ASSISTANT, (opaque, ToolCall(item["call_id"], item["name"], item["arguments"])))
    data = json.dumps(item).encode()
    if kind == "reasoning":
        return Message(Role.ASSISTANT, (Reasoning(signature=data, issuer=ISSUER),))
    return Message(Role.ASSISTANT, (Opaque(ISSUER, kind, data),))


def prompt_of(request: dict[str, Any]) -> tuple[Prompt, dict[str, Any]]:
    """A recorded request in Janus's words, and the options that it has no words for."""
    said = dict(request)
    items = said.pop("input")
    items = [{"role": "user", "content": items}] if isinstance(items, str) else items
    tools = functions(said)
    choice = said.pop("tool_choice", None)
    reasoning, text = dict(said.pop("reasoning", None) or {}), dict(said.pop("text", None) or {})
    options = None
    if reasoning.keys() & {"effort", "summary"}:
        effort = Effort(reasoning.pop("effort")) if "effort" in reasoning else None
        options = ReasoningOptions(effort, summary=bool(reasoning.pop("summary", None)))
    assert text.pop("format", {"type": "text"}) == {"type": "text"}
    prompt = Prompt(
        tuple(map(message_of, items)),
        system=said.pop("instructions", ""),
        tools=tools,
        tool_choice=ToolChoice(ToolChoiceMode.NAMED, choice["name"])
        if isinstance(choice, dict)
        else ToolChoice(ToolChoiceMode(choice))
        if choice
        else None,
        parallel_tool_calls=said.pop("parallel_tool_calls", None),
        sampling=Sampling(temperature=said.pop("temperature", None)),
        reasoning=options,
    )
    names = {tool.name for tool in tools}
    others = [tool for tool in said.pop("tools", []) if tool.get("name") not in names]
    left: dict[str, Any] = {"tools": others, "reasoning": reasoning, "text": text, **said}
    return prompt, {key: value for key, value in left.items() if value and key not in _KEPT_THERE | {"model"}}


def as_sent(item: dict[str, Any]) -> dict[str, Any]:
    """A recorded item without what a stateless request does not say, in the form that Janus uses."""
    kind = item.get("type", "message")
    if kind == "message":
        content = item["content"]
        if isinstance(content, list) and (item["role"] == "assistant" or content == [content[0] | {"type": "x"}]):
            content = "".join(block["text"] for block in content)
        if isinstance(content, list):
            content = [each if each["type"] != "input_image" else {**each, "detail": "auto"} for each in content]
            if len(content) == 1 and content[0].keys() == {"type", "text"}:
                content = content[0]["text"]
        about = {"phase": item["phase"]} if item.get("phase") else {}
        return {"role": item["role"], "content": content, **about}
    if kind == "function_call":
        return {key: value for key, value in item.items() if key not in ("id", "status")}
    return item


def check(exchange: dict[str, Any]) -> None:
    """Raises where something came out otherwise."""
    request = exchange["request"]
    prompt, options = prompt_of(request)
    prompt = replace(prompt, provider_options_json=json.dumps(options))
    body = responses_body(prompt, request["model"], profile_for(exchange), ISSUER)
    body |= with_options(body, options, RESERVED, lists=LISTS, objects=OBJECTS)
    assert body["store"] is False
    routed = body.pop("provider", None)  # OpenRouter's own
    assert (routed is None) == (exchange["host"] != "openrouter.ai")
    params().dump_python(params().validate_python(body))
    items = request["input"]
    items = [{"role": "user", "content": items}] if isinstance(items, str) else items
    sent = [as_sent(item) for item in items]
    assert body["input"] == [item for item in sent if item != {"role": "assistant", "content": ""}]
    tools = [{k: v for k, v in tool.items() if v is not None and v != ""} for tool in request.get("tools") or []]
    said = body.get("tools", [])
    assert sorted(map(json.dumps, map(sort, said))) == sorted(map(json.dumps, map(sort, tools)))
    for name in ("instructions", "tool_choice", "parallel_tool_calls", "temperature", "prompt_cache_options"):
        assert body.get(name) == (request.get(name) if request.get(name) != "" else None), name


def test_recorded_requests_can_be_said_and_come_out_as_they_were() -> None:
    wrong: dict[str, str] = {}
    recorded = exchanges()
    for exchange in recorded:
        try:
            check(exchange)
        except Exception as error:  # noqa: BLE001 - all that differ are shown, not the first
            wrong[exchange["id"]] = f"{type(error).__name__}: {error}"
    built = len(recorded) - len(wrong)
    print(f"openai_responses requests: {built} of {len(recorded)}")  # noqa: T201
    assert built
    assert not wrong, json.dumps(wrong, indent=1, ensure_ascii=False)


def sort(value: Any) -> Any:
    """The same with the keys of objects in order."""
    return json.loads(json.dumps(value, sort_keys=True))


def test_every_profile_can_say_a_plain_prompt() -> None:
    plain = Prompt((Message(Role.USER, (Text("hello"),)),), system="be brief", max_output_tokens=100)
    for profile in PROFILES.values():
        params().validate_python(responses_body(plain, "model", profile, ISSUER))
