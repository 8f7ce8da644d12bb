"""What other providers and models wrote, said to Messages in a form that it takes."""

from typing import Any

import pytest

from janus_inference.adapters.options import with_options
from janus_inference.dialects.anthropic_request import RESERVED, messages_body
from janus_inference.model import (
    Effort,
    Message,
    Opaque,
    Prompt,
    ReasoningOptions,
    Role,
    Text,
    ToolCall,
    ToolChoice,
    ToolChoiceMode,
    ToolDefinition,
    ToolResult,
)
from janus_kit.errors import InvalidArgument

HELLO = Message(Role.USER, (Text("hello"),))


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


@pytest.mark.parametrize("arguments", ['{"x": NaN}', '{"x": -Infinity}', "[" * 50_000, "{"])
def test_arguments_that_are_no_json_are_shown_as_they_were(arguments: str) -> None:
    body = said(Message(Role.ASSISTANT, (ToolCall("c1", "weather", arguments),)))
    assert body["messages"][1]["content"][0]["input"] == {"invalid_json": arguments}


def test_a_block_that_is_no_json_is_named() -> None:
    with pytest.raises(InvalidArgument) as raised:
        said(Message(Role.ASSISTANT, (Opaque("anthropic", "server_tool_use", b"[" * 50_000),)))
    assert raised.value.violations[0].field == "prompt.messages[1].parts[0].opaque.data"


def test_without_tools_nothing_is_said_of_choosing_one() -> None:
    body = said(tool_choice=ToolChoice(ToolChoiceMode.NONE, ""), parallel_tool_calls=False)
    assert "tool_choice" not in body
    assert "tools" not in body


@pytest.mark.parametrize(("most", "budget"), [(1000, None), (2000, 1999), (50_000, 16_384)])
def test_a_budget_that_an_effort_stands_for_leaves_room_for_the_answer(most: int, budget: int | None) -> None:
    body = said(reasoning=ReasoningOptions(Effort.HIGH), max_output_tokens=most)
    assert body.get("thinking", {}).get("budget_tokens") == budget


def test_the_providers_own_tools_stand_beside_the_callers() -> None:
    body = said(tools=(ToolDefinition("weather"),))
    search = {"type": "web_search_20250305", "name": "web_search"}
    options = {"tools": [search], "output_config": {"effort": "low"}, "metadata": {"user_id": "u"}}
    made = body | with_options(body, options, RESERVED, lists=("tools",), objects=("output_config",))
    assert [tool["name"] for tool in made["tools"]] == ["weather", "web_search"]
    assert (made["output_config"], made["metadata"]) == ({"effort": "low"}, {"user_id": "u"})
    with pytest.raises(InvalidArgument):
        with_options(body, {"tools": "none"}, RESERVED, lists=("tools",))
