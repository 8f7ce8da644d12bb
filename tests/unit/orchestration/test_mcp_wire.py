"""What servers say that is neither true nor sensible."""

from __future__ import annotations

import math
from typing import Any

import mcp_types as mcp
import pytest

from janus_api.content.v1 import message_pb2 as content
from janus_orchestration.mcp_settings import McpServerSettings
from janus_orchestration.model import SideEffect, ToolOutput
from janus_orchestration.wire.mcp import listing_from, output_from, progress_from, refusal_from

SETTINGS = McpServerSettings(command=("shop",))


def listed(**fields: Any) -> mcp.Tool:
    return mcp.Tool(**{"name": "count", "input_schema": {"type": "object"}, **fields})


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    "tool",
    [
        listed(name=""),
        listed(name="a" * 60),
        listed(name="zählen"),
        listed(description="a\x00"),
        listed(description="a" * 16_385),
        listed(input_schema={"type": "array"}),
        listed(input_schema={"$ref": "https://example.com/schema"}),
        listed(input_schema={"const": math.nan}),
        listed(input_schema=deep(40)),
        listed(input_schema={"enum": ["a" * 70_000]}),
    ],
)
def test_a_tool_that_breaks_a_rule_is_not_offered_and_the_others_are(tool: mcp.Tool) -> None:
    listing = listing_from("shop", SETTINGS, [tool, listed(name="other")])
    assert [each.name for each in listing.tools] == ["shop.other"]
    assert [each.tool for each in listing.left_out] == [tool.name]


def test_of_tools_of_one_name_the_first_is_offered_and_of_too_many_the_first_256() -> None:
    twins = [listed(description="a"), listed(description="b")]
    assert [tool.description for tool in listing_from("shop", SETTINGS, twins).tools] == ["a"]
    many = [listed(name=f"t{number}") for number in range(300)]
    listing = listing_from("shop", SETTINGS, many)
    assert len(listing.tools) == 256
    assert listing.left_out[0] == ("t256", "must have at most 256 items")
    # A server that has nothing but such tools does not fill the log.
    assert len(listing.left_out) == 16


@pytest.mark.parametrize(
    ("hints", "side_effect"),
    [
        (None, SideEffect.AT_MOST_ONCE),
        ({}, SideEffect.AT_MOST_ONCE),
        ({"destructive_hint": False}, SideEffect.AT_MOST_ONCE),
        ({"idempotent_hint": True}, SideEffect.IDEMPOTENT),
        ({"read_only_hint": True}, SideEffect.READ_ONLY),
        ({"read_only_hint": False, "idempotent_hint": False}, SideEffect.AT_MOST_ONCE),
    ],
)
def test_without_a_hint_a_call_is_not_repeated(hints: dict[str, bool] | None, side_effect: SideEffect) -> None:
    annotations = None if hints is None else mcp.ToolAnnotations(**hints)
    (tool,) = listing_from("shop", SETTINGS, [listed(annotations=annotations)]).tools
    assert tool.side_effect is side_effect


def test_structured_content_is_shown_where_there_is_nothing_else() -> None:
    alone = mcp.CallToolResult(content=[], structured_content={"n": "ü"})
    assert parts(output_from(alone, None)) == [content.Part(text='{"n": "ü"}')]
    both = mcp.CallToolResult(content=[mcp.TextContent(type="text", text="one")], structured_content={"n": 1})
    assert parts(output_from(both, None)) == [content.Part(text="one")]
    failed = mcp.CallToolResult(content=[], structured_content={"n": 1}, is_error=True)
    assert content.ToolResult.FromString(output_from(failed, {"type": "string"}).wire).is_error


def parts(output: ToolOutput) -> list[content.Part]:
    return list(content.ToolResult.FromString(output.wire).parts)


@pytest.mark.parametrize(
    "block",
    [
        mcp.ImageContent(type="image", data="AA==", mime_type="a picture"),
        mcp.ImageContent(type="image", data="", mime_type="image/png"),
        mcp.ImageContent(type="image", data="ä", mime_type="image/png"),
        mcp.TextContent(type="text", text="a" * (1024 * 1024 + 1)),
    ],
)
def test_content_that_breaks_a_rule_is_a_failed_call(block: mcp.ContentBlock) -> None:
    output = output_from(mcp.CallToolResult(content=[block]), None)
    result = content.ToolResult.FromString(output.wire)
    assert output.is_error or result.is_error
    assert "breaks a rule" in (output.text or result.parts[0].text)


def test_a_schema_of_a_server_that_would_take_for_ever_to_match_does_not() -> None:
    schema = {"properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
    result = mcp.CallToolResult(content=[], structured_content={"a": "a" * 50 + "!"})
    assert "must match the pattern" in output_from(result, schema).text


def test_halves_of_characters_are_replaced() -> None:
    text = mcp.TextContent.model_construct(type="text", text="a\ud800")
    assert parts(output_from(mcp.CallToolResult.model_construct(content=[text], is_error=False), None)) == [
        content.Part(text="a?")
    ]
    assert refusal_from("b\ud800" * 5_000).text.startswith("the tool's server answered with an error: b?")
    assert len(refusal_from("b" * 5_000).text) < 2_100


@pytest.mark.parametrize(
    ("told", "known"),
    [
        ((1, 4, "a"), (0.25, "a")),
        ((5, 4, None), (1.0, "")),
        ((1, None, "a\x00"), (None, "a\ufffd")),
        ((1, 0, ""), (None, "")),
        ((-1, 4, ""), (None, "")),
        ((math.nan, 4, ""), (None, "")),
        ((1, math.nan, ""), (None, "")),
        ((math.inf, math.inf, "a" * 2_000), (None, "a" * 1_024)),
    ],
)
def test_progress_is_a_share_or_nothing(
    told: tuple[float, float | None, str | None], known: tuple[float | None, str]
) -> None:
    assert progress_from(*told) == known
