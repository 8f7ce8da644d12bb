"""Chat Completions requests: where breakpoints stand, tools without arguments, and what an issuer gets back."""

import json
from dataclasses import replace
from typing import Any

import pytest

from janus_inference.dialects.breakpoints import last_breakpoints
from janus_inference.dialects.openai_chat_request import chat_body
from janus_inference.dialects.openai_responses_request import responses_body
from janus_inference.dialects.schemas import parameters
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
    ToolChoice,
    ToolChoiceMode,
    ToolDefinition,
    ToolResult,
)
from janus_inference.profiles import OPENAI, PROFILES
from janus_kit.errors import InvalidArgument

MARK = {"cache_control": {"type": "ephemeral"}}
CLAUDE = "anthropic/claude-sonnet-4.6"


def routed(*messages: Message) -> list[dict[str, Any]]:
    body = chat_body(Prompt(messages), CLAUDE, PROFILES["openrouter"], "openrouter")
    return list(body["messages"])


def marked(said: list[dict[str, Any]]) -> list[str]:
    """The words, or the kinds, of blocks that carry a breakpoint."""
    blocks = [block for each in said if isinstance(each.get("content"), list) for block in each["content"]]
    return [block.get("text", block["type"]) for block in blocks if "cache_control" in block]


def user(*parts: Part) -> Message:
    return Message(Role.USER, parts)


def used(call_id: str, *parts: Part, mark: bool = True, is_error: bool = False) -> tuple[Message, Message]:
    """A call of a tool and its result."""
    call = ToolCall(call_id, "weather", "{}")
    result = ToolResult(call_id, parts, is_error, cache_breakpoint=mark)
    return Message(Role.ASSISTANT, (call,)), Message(Role.TOOL, (result,))


def test_marked_results_of_tools_carry_breakpoints_as_blocks() -> None:
    turns = [message for number in range(5) for message in used(f"c{number}", Text("a"), Text(f"sun {number}"))]
    said = routed(user(Text("go")), *turns)
    assert marked(said) == ["sun 1", "sun 2", "sun 3", "sun 4"]
    results = [each["content"] for each in said if each["role"] == "tool"]
    assert results[0] == "a\nsun 0"
    assert results[1] == [{"type": "text", "text": "a"}, {"type": "text", "text": "sun 1", **MARK}]


def test_a_marked_error_is_still_one() -> None:
    said = routed(user(Text("go")), *used("c", Text("no"), is_error=True))
    assert said[-1]["content"] == [{"type": "text", "text": "Error:"}, {"type": "text", "text": "no", **MARK}]


def test_a_document_in_a_result_carries_one_as_its_text() -> None:
    notes = Document(Media("text/plain", data=b"notes"), "N", cache_breakpoint=True)
    said = routed(user(Text("go")), *used("c", notes, mark=False))
    assert [text.endswith("notes") for text in marked(said)] == [True]


@pytest.mark.parametrize(
    "last",
    [
        (user(Text("  ", cache_breakpoint=True)),),
        (Message(Role.ASSISTANT, (ToolCall("c", "weather", "{}", cache_breakpoint=True),)),),
        used("c"),
        used("c", Text("")),
    ],
)
def test_a_part_that_cannot_carry_one_leaves_it_to_the_block_before(last: tuple[Message, ...]) -> None:
    picture = Image(Media("", uri="https://a/x.png"))
    assert marked(routed(user(Text("look"), picture), *last)) == ["image_url"]


def test_marks_that_meet_in_one_place_are_one() -> None:
    calls = tuple(ToolCall(f"c{number}", "weather", "{}", cache_breakpoint=True) for number in range(6))
    said = routed(user(Text("one", cache_breakpoint=True)), user(Text("two")), Message(Role.ASSISTANT, calls))
    assert marked(said) == ["one", "two"]


def test_nothing_before_the_first_mark_leaves_it_out() -> None:
    assert marked(routed(user(Text("", cache_breakpoint=True)), user(Text("go")))) == []


def test_without_a_rule_every_part_carries_its_own() -> None:
    call = ToolCall("c", "weather", "{}", cache_breakpoint=True)
    assert last_breakpoints([Message(Role.ASSISTANT, (Text("a"), call))], 4) == {id(call)}


@pytest.mark.parametrize(
    ("given", "schema"),
    [
        ("", {"type": "object", "properties": {}}),
        ("{}", {"type": "object", "properties": {}}),
        ('{"type":"object"}', {"type": "object", "properties": {}}),
        (
            '{"type":"object","additionalProperties":false}',
            {"type": "object", "properties": {}, "additionalProperties": False},
        ),
        ('{"properties":{"a":{}}}', {"type": "object", "properties": {"a": {}}}),
    ],
)
def test_a_schema_of_arguments_always_says_that_they_are_an_object(given: str, schema: dict[str, Any]) -> None:
    assert parameters(ToolDefinition("clock", parameters_schema_json=given)) == schema


@pytest.mark.parametrize("mode", [ToolChoiceMode.AUTO, ToolChoiceMode.NONE])
@pytest.mark.parametrize("options", ["", '{"user": "tools"}', '{"tools": []}'])
def test_nothing_is_said_of_tools_where_there_are_none(mode: ToolChoiceMode, options: str) -> None:
    asked = Prompt(
        (user(Text("go")),),
        tool_choice=ToolChoice(mode),
        parallel_tool_calls=False,
        provider_options_json=options,
    )
    body = chat_body(asked, "gpt", OPENAI, "openai")
    assert body.keys().isdisjoint({"tools", "tool_choice", "parallel_tool_calls"})
    own = '{"tools": [{"type": "mcp"}]}'
    for some in (replace(asked, tools=(ToolDefinition("clock"),)), replace(asked, provider_options_json=own)):
        body = chat_body(some, "gpt", OPENAI, "openai")
        assert (body["tool_choice"], body["parallel_tool_calls"]) == (mode.value, False)


def test_tools_that_an_option_brings_unnamed_may_be_required() -> None:
    asked = Prompt((user(Text("go")),), tool_choice=ToolChoice(ToolChoiceMode.REQUIRED))
    assert "tool_choice" not in chat_body(asked, "gpt", OPENAI, "openai")
    preset = replace(asked, provider_options_json='{"preset": "x"}')
    assert chat_body(preset, "gpt", OPENAI, "openai")["tool_choice"] == "required"


@pytest.mark.parametrize("mode", [ToolChoiceMode.AUTO, ToolChoiceMode.NONE])
def test_nor_is_it_in_responses(mode: ToolChoiceMode) -> None:
    asked = Prompt((user(Text("go")),), tool_choice=ToolChoice(mode), parallel_tool_calls=False)
    body = responses_body(asked, "gpt", OPENAI, "openai")
    assert body.keys().isdisjoint({"tools", "tool_choice", "parallel_tool_calls"})


@pytest.mark.parametrize(
    "data",
    [b"[NaN]", b"[-Infinity]", b"[1e999]", b"[" * 100_000, b'["\\ud800"]', b"\xff", b"{}", b"1,2", b"null"],
)
def test_reasoning_that_could_not_be_sent_is_the_caller_s_error(data: bytes) -> None:
    said = Message(Role.ASSISTANT, (Text("x"), Opaque("openrouter", "reasoning_details", data)))
    with pytest.raises(InvalidArgument) as raised:
        routed(user(Text("go")), said)
    assert raised.value.violations[0].field == "prompt.messages[1].parts[1].opaque.data"


@pytest.mark.parametrize(
    "parts",
    [
        (Opaque("ant", "block", b"{}"),),
        (Reasoning("thought", signature=b"proof", issuer="ant"),),
        (Reasoning("thought", signature=b"proof", issuer="ant"), Opaque("ant", "block", b"{}")),
    ],
)
def test_a_message_of_others_blocks_and_reasoning_alone_is_not_sent(parts: tuple[Part, ...]) -> None:
    asked = Prompt((user(Text("a")), Message(Role.ASSISTANT, parts), user(Text("b"))))
    assert chat_body(asked, "gpt", OPENAI, "openai")["messages"] == [
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
    ]


def test_a_prompt_of_others_blocks_alone_is_refused() -> None:
    asked = Prompt((user(Opaque("ant", "block", b"{}")),))
    for body in (chat_body, responses_body):
        with pytest.raises(InvalidArgument) as raised:
            body(asked, "gpt", OPENAI, "openai")
        assert raised.value.violations[0].field == "prompt.messages"
        assert body(replace(asked, system="Be kind."), "gpt", OPENAI, "openai")


def test_what_was_made_of_a_document_goes_back_to_its_issuer() -> None:
    notes = [{"type": "file", "file": {"hash": "x", "content": [{"type": "text", "text": "page"}]}}]
    kept = tuple(
        Opaque("openrouter", "annotations", json.dumps({"annotations": [note]}).encode()) for note in notes * 2
    )
    message = Message(Role.ASSISTANT, (Text("A page."), *kept))
    assert routed(user(Text("What is it?")), message)[1] == {
        "role": "assistant",
        "content": "A page.",
        "annotations": notes * 2,
    }
    others = chat_body(Prompt((user(Text("a")), message)), "gpt", OPENAI, "openai")["messages"]
    assert others[1] == {"role": "assistant", "content": "A page."}


@pytest.mark.parametrize("data", [b"[]", b"{}", b'{"annotations": 1}', b'{"annotations": [NaN]}'])
def test_notes_that_could_not_be_sent_are_the_caller_s_error(data: bytes) -> None:
    with pytest.raises(InvalidArgument) as raised:
        routed(Message(Role.ASSISTANT, (Opaque("openrouter", "annotations", data),)))
    assert raised.value.violations[0].field == "prompt.messages[0].parts[0].opaque.data"


@pytest.mark.parametrize("name", ["ollama", "zai"])
def test_where_no_choice_of_tools_is_taken_none_are_offered_or_the_wish_is_refused(name: str) -> None:
    asked = Prompt((user(Text("go")),), tools=(ToolDefinition("clock"),), parallel_tool_calls=False)

    def body(choice: ToolChoice) -> dict[str, Any]:
        return chat_body(replace(asked, tool_choice=choice), "some", PROFILES[name], name)

    assert "tools" in body(ToolChoice(ToolChoiceMode.AUTO))
    assert body(ToolChoice(ToolChoiceMode.NONE)).keys().isdisjoint({"tools", "parallel_tool_calls"})
    for mode in (ToolChoiceMode.AUTO, ToolChoiceMode.NONE):
        assert "tool_choice" not in body(ToolChoice(mode))
    for choice in (ToolChoice(ToolChoiceMode.REQUIRED), ToolChoice(ToolChoiceMode.NAMED, "clock")):
        with pytest.raises(InvalidArgument) as raised:
            body(choice)
        assert raised.value.violations[0].field == "prompt.tool_choice.mode"
        assert raised.value.reason == "CAPABILITY_UNSUPPORTED"


@pytest.mark.parametrize("data", [b"[]", b'{"id": NaN}', b"{" * 100_000])
def test_what_is_kept_of_a_call_is_read_as_strictly(data: bytes) -> None:
    said = Message(Role.ASSISTANT, (Opaque("openrouter", "custom_tool_call", data), ToolCall("a", "shell", "{}")))
    with pytest.raises(InvalidArgument):
        routed(user(Text("go")), said)


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        ('{"input": 1}', '{"input": 1}'),
        ("", "{}"),
        ('{"input": NaN}', json.dumps({"invalid_json": '{"input": NaN}'})),
        ("{" * 100_000, json.dumps({"invalid_json": "{" * 100_000})),
        ("ls", '{"invalid_json": "ls"}'),
        ("[1]", '{"invalid_json": "[1]"}'),
    ],
)
def test_a_call_that_is_no_free_text_goes_back_as_one_of_arguments(arguments: str, sent: str) -> None:
    parts = (Opaque("openrouter", "custom_tool_call", b'{"id":"a"}'), ToolCall("a", "shell", arguments))
    (call,) = routed(user(Text("go")), Message(Role.ASSISTANT, parts))[1]["tool_calls"]
    assert call["function"] == {"name": "shell", "arguments": sent}


def test_reasoning_goes_back_to_its_issuer_as_it_came() -> None:
    details = [{"type": "reasoning.encrypted", "data": "AA==", "index": 0}]
    kept = Opaque("openrouter", "reasoning_details", json.dumps(details).encode())
    assert routed(user(Text("go")), Message(Role.ASSISTANT, (Text("x"), kept)))[1]["reasoning_details"] == details
