"""Blocks that only one provider knows, beside what users, tools and instructions say."""

import json
from typing import Any

import pytest

from janus_inference.dialects.anthropic_request import messages_body
from janus_inference.dialects.openai_chat_request import chat_body
from janus_inference.dialects.openai_responses_request import responses_body
from janus_inference.model import (
    Citation,
    Image,
    Media,
    Message,
    Opaque,
    Part,
    Prompt,
    Role,
    Text,
    ToolCall,
    ToolResult,
)
from janus_inference.profiles import OPENAI
from janus_inference.validation import validate
from janus_kit.errors import InvalidArgument

UPLOAD = {"type": "container_upload", "file_id": "file_1"}
REFERENCE = {"type": "tool_reference", "tool_name": "weather"}
ADDITION = {"type": "tool_addition", "tool": REFERENCE | {"name": "weather"}}
HELD = {"type": "input_file", "file_id": "file_1"}
VIDEO = {"type": "video_url", "video_url": {"url": "https://example.com/a.webm"}}
ASKS = Message(Role.ASSISTANT, (ToolCall("a", "search", "{}"),))


def block(said: dict[str, Any], issuer: str = "own") -> Opaque:
    return Opaque(issuer, said["type"], json.dumps(said).encode())


def prompt(*messages: Message) -> Prompt:
    made = Prompt(messages)
    validate(made)
    return made


def user(*parts: Part) -> Message:
    return Message(Role.USER, parts)


def answered(*parts: Part) -> Message:
    return Message(Role.TOOL, (ToolResult("a", parts),))


def messages(asked: Prompt) -> list[Any]:
    said: list[Any] = messages_body(asked, "claude", "own")["messages"]
    return said


def chat(asked: Prompt) -> list[Any]:
    said: list[Any] = chat_body(asked, "gpt", OPENAI, "own")["messages"]
    return said


def responses(asked: Prompt) -> list[Any]:
    said: list[Any] = responses_body(asked, "gpt", OPENAI, "own")["input"]
    return said


def test_a_user_s_block_is_sent_to_its_issuer_as_it_is() -> None:
    assert messages(prompt(user(Text("sum it up"), block(UPLOAD))))[0]["content"][1] == UPLOAD
    assert chat(prompt(user(Text("what is this?"), block(VIDEO))))[0]["content"][1] == VIDEO
    assert responses(prompt(user(Text("sum it up"), block(HELD))))[0]["content"][1] == HELD


def test_a_tool_s_block_is_sent_to_its_issuer_as_it_is() -> None:
    found = messages(prompt(user(Text("?")), ASKS, answered(block(REFERENCE))))
    assert found[2]["content"][0]["content"] == [REFERENCE]
    held = responses(prompt(user(Text("?")), ASKS, answered(Text("here"), block(HELD))))
    assert held[2]["output"] == [{"type": "input_text", "text": "here"}, HELD]


def test_a_tool_s_block_is_refused_where_results_are_text_alone() -> None:
    with pytest.raises(InvalidArgument) as raised:
        chat(prompt(user(Text("?")), ASKS, answered(Text("here"), block(VIDEO))))
    assert raised.value.violations[0].field == "prompt.messages[2].parts[0].tool_result.parts[1].opaque"


@pytest.mark.parametrize("said", [messages, chat, responses])
def test_others_are_not_shown_it(said: Any) -> None:
    other = block(UPLOAD, "other")
    asked = prompt(user(other), user(Text("hello"), other), ASKS, answered(Text("x"), other))
    bare = prompt(user(Text("hello")), ASKS, answered(Text("x")))
    written = json.dumps(said(asked))
    assert "file_1" not in written
    assert len(said(asked)) == len(said(bare))


def test_instructions_with_a_block_are_said_where_they_stand() -> None:
    later = Message(Role.SYSTEM, (Text("from now on"), block(ADDITION)))
    first = Message(Role.SYSTEM, (Text("be kind"), block(ADDITION, "other")))
    body = messages_body(prompt(first, user(Text("hello")), later), "claude", "own")
    assert body["system"] == "be kind"
    assert [message["role"] for message in body["messages"]] == ["user", "system"]
    assert body["messages"][1]["content"] == [{"type": "text", "text": "from now on"}, ADDITION]


@pytest.mark.parametrize("said", [messages, chat, responses])
@pytest.mark.parametrize("data", [b"\xff", b"[]", b"{}", b'{"type":"another"}'])
def test_a_block_that_is_not_what_its_part_says_is_refused(said: Any, data: bytes) -> None:
    with pytest.raises(InvalidArgument) as raised:
        said(prompt(user(Text("hello"), Opaque("own", "input_file", data))))
    assert raised.value.violations[0].field == "prompt.messages[0].parts[1].opaque.data"


def test_what_only_a_model_says_is_still_its_own() -> None:
    with pytest.raises(InvalidArgument) as raised:
        prompt(
            user(Text("x"), Citation(title="A")), user(Image(Media("image/png", data=b"x")), ToolCall("a", "b", "{}"))
        )
    assert [each.field for each in raised.value.violations] == [
        "prompt.messages[0].parts[1]",
        "prompt.messages[1].parts[1]",
    ]
