"""What other providers and models wrote, said to Messages in a form that it takes."""

import json
from typing import Any

import pytest

from janus_inference.adapters.anthropic import with_own
from janus_inference.dialects.anthropic_request import messages_body
from janus_inference.model import (
    Effort,
    Message,
    Opaque,
    Prompt,
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
from janus_kit.errors import InvalidArgument

HELLO = Message(Role.USER, (Text("hello"),))


WEATHER = ToolDefinition("weather")


def said(*messages: Message, **fields: Any) -> dict[str, Any]:
    return dict(messages_body(Prompt((HELLO, *messages), **fields), "claude-sonnet-4-5", "anthropic"))


def test_blanks_alone_are_no_text() -> None:
    call = ToolCall("c1", "weather", "{}")
    body = said(
        Message(Role.ASSISTANT, (Text("\n\n"), call)), Message(Role.TOOL, (ToolResult("c1", (Text(" "), Text("sun"))),))
    )
    assert [block["type"] for block in body["messages"][1]["content"]] == ["tool_use"]
    (result,) = body["messages"][2]["content"]
    assert result["content"] == [{"type": "text", "text": "sun"}]


def test_blanks_alone_are_no_instructions_either() -> None:
    marked = Message(Role.SYSTEM, (Text(" \n"), Text("be kind", cache_breakpoint=True)))
    assert [block["text"] for block in said(marked)["system"]] == ["be kind"]
    assert "system" not in said(system="\n")


@pytest.mark.parametrize("only", [Message(Role.SYSTEM, (Text("be kind"),)), Message(Role.USER, (Text(" "),))])
def test_instructions_alone_are_refused_by_name(only: Message) -> None:
    with pytest.raises(InvalidArgument) as raised:
        messages_body(Prompt((only,)), "claude-sonnet-4-5", "anthropic")
    assert raised.value.violations[0].field == "prompt.messages"
    assert "ROLE_SYSTEM" in raised.value.violations[0].rule


@pytest.mark.parametrize("arguments", ['{"x": NaN}', '{"x": -Infinity}', '{"x": 1e999}', "[" * 50_000, "{"])
def test_arguments_that_are_no_json_are_shown_as_they_were(arguments: str) -> None:
    body = said(Message(Role.ASSISTANT, (ToolCall("c1", "weather", arguments),)))
    assert body["messages"][1]["content"][0]["input"] == {"invalid_json": arguments}


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("server_tool_use", b"[" * 50_000),
        ("server_tool_use", b'{"type":"server_tool_use","input":{"x":1e999}}'),
        ("server_tool_use", b'{"type":"text","text":"x"}'),
        ("server_tool_use", b'{"id":"s"}'),
        ("tool_use", b'{"caller":{"type":"direct"}}'),
    ],
)
def test_a_block_that_its_issuer_could_not_have_written_is_named(kind: str, data: bytes) -> None:
    with pytest.raises(InvalidArgument) as raised:
        said(Message(Role.ASSISTANT, (Opaque("anthropic", kind, data, cache_breakpoint=True),)))
    assert raised.value.violations[0].field == "prompt.messages[1].parts[0].opaque.data"


def test_without_tools_nothing_is_said_of_choosing_one() -> None:
    body = said(tool_choice=ToolChoice(ToolChoiceMode.NONE, ""), parallel_tool_calls=False)
    assert "tool_choice" not in body
    assert "tools" not in body


def test_calls_of_tools_that_are_not_offered_any_more_are_defined_and_may_not_be_made_again() -> None:
    asked = Message(Role.ASSISTANT, (ToolCall("c1", "weather", "{}"), ToolCall("c2", "time", "{}")))
    told = Message(Role.TOOL, (ToolResult("c1", (Text("sun"),)), ToolResult("c2", (Text("noon"),))))
    body = said(asked, told, provider_options_json='{"metadata":{"user_id":"u"}}')
    assert [tool["name"] for tool in body["tools"]] == ["weather", "time"]
    assert body["tool_choice"] == {"type": "none"}
    offered = said(asked, told, tools=(WEATHER,))
    assert [tool["name"] for tool in offered["tools"]] == ["weather"]
    assert "tool_choice" not in offered
    own = said(asked, told, provider_options_json='{"tools":[{"type":"web_search_20250305","name":"web_search"}]}')
    assert "tool_choice" not in own


def test_options_without_tools_are_nothing_to_choose_among() -> None:
    choosing: dict[str, Any] = {"tool_choice": ToolChoice(ToolChoiceMode.AUTO), "parallel_tool_calls": False}
    body = said(**choosing, provider_options_json="{...}")
    assert "tool_choice" not in with_own(body, {"metadata": {"user_id": "u"}})
    search = {"type": "web_search_20250305", "name": "web_search"}
    chosen = {"type": "auto", "disable_parallel_tool_use": True}
    assert with_own(body, {"tools": [search]})["tool_choice"] == chosen


@pytest.mark.parametrize(("most", "budget"), [(1025, 1024), (2000, 1024), (4096, 2048), (50_000, 16_384)])
def test_a_budget_that_an_effort_stands_for_leaves_room_for_the_answer(most: int, budget: int) -> None:
    body = said(reasoning=ReasoningOptions(Effort.HIGH), max_output_tokens=most)
    assert body["thinking"] == {"type": "enabled", "budget_tokens": budget}


def test_an_effort_without_room_to_think_is_refused_and_the_least_is_none() -> None:
    def asked(effort: Effort) -> Prompt:
        return Prompt((HELLO,), reasoning=ReasoningOptions(effort), max_output_tokens=1024)

    with pytest.raises(InvalidArgument) as raised:
        messages_body(asked(Effort.LOW), "claude-sonnet-4-5", "anthropic")
    assert [each.field for each in raised.value.violations] == ["prompt.reasoning.effort"]
    assert "max_output_tokens" in raised.value.violations[0].rule
    assert "thinking" not in messages_body(asked(Effort.MINIMAL), "claude-sonnet-4-5", "anthropic")


@pytest.mark.parametrize(("model", "most"), [("claude-opus-4-1", 32_000), ("claude-sonnet-4-5", 64_000)])
@pytest.mark.parametrize("asked", [None, 200_000])
def test_a_budget_beyond_what_a_model_writes_is_refused(model: str, most: int, asked: int | None) -> None:
    prompt = Prompt((HELLO,), reasoning=ReasoningOptions(budget_tokens=most), max_output_tokens=asked)
    with pytest.raises(InvalidArgument) as raised:
        messages_body(prompt, model, "anthropic")
    assert raised.value.violations[0].field == "prompt.reasoning.budget_tokens"
    assert str(most) in raised.value.violations[0].rule


@pytest.mark.parametrize(
    ("field", "asked"),
    [
        (
            "tool_choice.mode",
            {"tools": (ToolDefinition("weather"),), "tool_choice": ToolChoice(ToolChoiceMode.REQUIRED)},
        ),
        ("sampling.temperature", {"sampling": Sampling(temperature=0.2)}),
        ("sampling.top_k", {"sampling": Sampling(top_k=5)}),
        ("sampling.top_p", {"sampling": Sampling(top_p=0.5)}),
    ],
)
def test_what_does_not_go_with_a_thinking_budget_is_refused_by_name(field: str, asked: dict[str, Any]) -> None:
    messages_body(Prompt((HELLO,), **asked), "claude-sonnet-4-5", "anthropic")
    thinking = Prompt((HELLO,), reasoning=ReasoningOptions(budget_tokens=2000), **asked)
    with pytest.raises(InvalidArgument) as raised:
        messages_body(thinking, "claude-sonnet-4-5", "anthropic")
    assert [violation.field for violation in raised.value.violations] == [f"prompt.{field}"]


def test_the_providers_own_tools_stand_beside_the_callers() -> None:
    body = said(tools=(ToolDefinition("weather"),))
    search = {"type": "web_search_20250305", "name": "web_search"}
    made = with_own(body, {"tools": [search], "output_config": {"effort": "low"}, "metadata": {"user_id": "u"}})
    assert [tool["name"] for tool in made["tools"]] == ["weather", "web_search"]
    assert (made["output_config"], made["metadata"]) == ({"effort": "low"}, {"user_id": "u"})
    with pytest.raises(InvalidArgument):
        with_own(body, {"tools": "none"})


def test_settings_of_thinking_stand_beside_what_was_asked() -> None:
    body = said(reasoning=ReasoningOptions(budget_tokens=2000))
    made = with_own(body, {"thinking": {"display": "omitted"}})
    assert made["thinking"] == {"type": "enabled", "budget_tokens": 2000, "display": "omitted"}
    with pytest.raises(InvalidArgument, match=r"thinking\.budget_tokens"):
        with_own(body, {"thinking": {"budget_tokens": 3000}})


def test_what_only_the_provider_understands_of_a_call_goes_back_with_it() -> None:
    caller = {"type": "code_execution_20260120", "tool_id": "srvtoolu_1"}
    about = Opaque("anthropic", "tool_use", json.dumps({"id": "c1", "caller": caller}).encode())
    body = said(Message(Role.ASSISTANT, (about, ToolCall("c1", "weather", "{}"), ToolCall("c2", "weather", "{}"))))
    assert body["messages"][1]["content"] == [
        {"type": "tool_use", "id": "c1", "name": "weather", "input": {}, "caller": caller},
        {"type": "tool_use", "id": "c2", "name": "weather", "input": {}},
    ]
