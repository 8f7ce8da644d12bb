"""What other providers and models wrote, said to Responses in a form that it takes."""

import json
from typing import Any

import pytest

from janus_inference.dialects.json_text import NotJson, strict_object
from janus_inference.dialects.openai_responses_request import responses_body
from janus_inference.model import Message, Opaque, Prompt, Role, Text, ToolCall, ToolResult
from janus_inference.profiles import OPENAI
from janus_kit.errors import InvalidArgument

LONG = "call_" + "x" * 100


def items(*messages: Message) -> list[dict[str, Any]]:
    body = responses_body(Prompt(messages), "gpt-5", OPENAI, "openai")
    made: list[dict[str, Any]] = body["input"]
    return made


@pytest.mark.parametrize(("call_id", "is_kept"), [("call_1", True), ("x" * 64, True), (LONG, False)])
def test_a_call_and_its_result_have_one_id_that_fits(call_id: str, is_kept: bool) -> None:
    call, result = items(
        Message(Role.ASSISTANT, (ToolCall(call_id, "weather", "{}"),)),
        Message(Role.TOOL, (ToolResult(call_id, (Text("sunny"),)),)),
    )
    assert call["call_id"] == result["call_id"]
    assert len(call["call_id"]) <= 64
    assert (call["call_id"] == call_id) is is_kept


@pytest.mark.parametrize("data", [b'{"type": "web_search_call", "x": NaN}', b"[" * 100_000, b"[1]", b"{"])
def test_a_block_that_is_no_json_object_is_named(data: bytes) -> None:
    with pytest.raises(InvalidArgument) as raised:
        items(Message(Role.ASSISTANT, (Opaque("openai", "web_search_call", data),)))
    assert raised.value.violations[0].field == "prompt.messages[0].parts[0].opaque.data"


def test_a_strict_object_is_what_json_is() -> None:
    assert strict_object(b'{"a": [1.5, null, "\\u0000"]}') == {"a": [1.5, None, "\x00"]}
    for wrong in (b'{"a": Infinity}', b'{"a": 1e999}', b"1", b'{"a": ' * 50_000):
        with pytest.raises(NotJson):
            strict_object(wrong)
    assert json.dumps(strict_object(b"{}")) == "{}"
