"""Every bound of the contract's prompt, and the path that a violation names."""

import json
from dataclasses import replace
from typing import Any

import pytest
from tests.fakes.providers.prompts import prompt

from janus_inference.model import (
    Citation,
    Effort,
    Empty,
    Image,
    JsonSchemaFormat,
    Media,
    Message,
    Opaque,
    Prompt,
    Reasoning,
    ReasoningOptions,
    Refusal,
    Role,
    Routing,
    Sampling,
    Text,
    Timeouts,
    ToolCall,
    ToolChoice,
    ToolChoiceMode,
    ToolDefinition,
    ToolResult,
)
from janus_inference.validation import validate, validate_embedding
from janus_kit.errors import InvalidArgument

NAN = float("nan")
DEEP = '{"a":' * 33 + "1" + "}" * 33


def user(*parts: Any, **fields: Any) -> Message:
    return Message(Role.USER, parts or (Text("x"),), **fields)


def assistant(*parts: Any) -> Message:
    return Message(Role.ASSISTANT, parts)


def with_messages(*messages: Message) -> Prompt:
    return replace(prompt(), messages=messages)


def with_part(part: Any, role: Role = Role.USER) -> Prompt:
    return with_messages(Message(role, (part,)))


def with_image(media: Media) -> Prompt:
    return with_part(Image(media))


CALL = ToolCall("a", "weather", "{}")
RESULT = ToolResult("a", (Text("sunny"),))
WEATHER = ToolDefinition("weather", parameters_schema_json='{"type": "object"}')

BAD: list[tuple[str, Prompt]] = [
    ("prompt.messages", with_messages()),
    ("prompt.messages", with_messages(*([user()] * 10_001))),
    ("prompt.model", prompt(model="m" * 257)),
    ("prompt.system", prompt(system="ü" * (512 * 1024 + 1))),
    ("prompt.messages[0].role", with_messages(Message(Role.UNSPECIFIED, (Text("x"),)))),
    ("prompt.messages[0].name", with_messages(user(name="n" * 129))),
    ("prompt.messages[0].id", with_messages(user(id="no spaces"))),
    ("prompt.messages[0].parts", with_messages(Message(Role.USER, ()))),
    ("prompt.messages[1].parts", with_messages(user(), user(*[Text("x")] * 1025))),
    ("prompt.messages[0].parts[1]", with_messages(user(Text("x"), Empty()))),
    *(
        (f"prompt.messages[0].parts[0].{field}", with_part(part, Role.ASSISTANT))
        for field, part in (
            ("reasoning.text", Reasoning(text="x" * (16 * 1024**2 + 1))),
            ("reasoning.summary", Reasoning(summary="ü" * (8 * 1024**2 + 1))),
            ("text", Text("x" * (16 * 1024**2 + 1))),
            ("refusal", Refusal("x" * (16 * 1024**2 + 1))),
            ("reasoning.redacted", Reasoning(redacted=b"x" * (1024**2 + 1), issuer="openai")),
            ("reasoning.signature", Reasoning(signature=b"x" * (1024**2 + 1), issuer="openai")),
            ("reasoning.issuer", Reasoning(text="x", signature=b"proof")),
            ("reasoning.issuer", Reasoning(redacted=b"x")),
            ("reasoning.issuer", Reasoning(text="x", issuer="i" * 65)),
            ("citation.start", Citation(start=-1)),
            ("citation.end", Citation(start=2, end=1)),
            ("citation.title", Citation(title="t" * 1025)),
            ("citation.uri", Citation(uri="u" * 2049)),
            ("citation.quote", Citation(quote="q" * (64 * 1024 + 1))),
            ("citation.part_index", Citation(part_index=-1)),
            ("citation.issuer", Citation(data=b"{}")),
            ("citation.issuer", Citation(issuer="i" * 65)),
            ("citation.data", Citation(issuer="anthropic", data=b"x" * (64 * 1024 + 1))),
            ("opaque.issuer", Opaque("", "kind", b"x")),
            ("opaque.type", Opaque("openai", "", b"x")),
            ("opaque.data", Opaque("openai", "kind", b"x" * (3 * 1024**2 + 1))),
        )
    ),
    ("prompt.messages[0].parts[0].text", with_part(Text("x" * (1024 * 1024 + 1)))),
    ("prompt.messages[0].parts[0].image", with_image(Media("image/png"))),
    ("prompt.messages[0].parts[0].image.mime_type", with_image(Media("", data=b"x"))),
    ("prompt.messages[0].parts[0].image.mime_type", with_image(Media("png", data=b"x"))),
    ("prompt.messages[0].parts[0].image.mime_type", with_image(Media("image/png,x", data=b"x"))),
    ("prompt.messages[0].parts[0].image.mime_type", with_image(Media("image/" + "x" * 123, data=b"x"))),
    ("prompt.messages[0].parts[0].image.mime_type", with_image(Media("no type", uri="https://example.org/x"))),
    ("prompt.messages[0].parts[0].image.data", with_image(Media("image/png", data=b"x" * (3 * 1024**2 + 1)))),
    ("prompt.messages[0].parts[0].image.uri", with_image(Media("", uri="http://127.0.0.1/x.png"))),
    ("prompt.messages[0].parts[0].image.uri", with_image(Media("", uri="https://" + "x" * 2048))),
    ("prompt.messages[0].parts[0]", with_part(CALL)),
    ("prompt.messages[0].parts[0]", with_part(Reasoning("hm"))),
    ("prompt.messages[0].parts[0]", with_part(RESULT)),
    ("prompt.messages[0].parts[0]", with_part(Text("x"), Role.TOOL)),
    ("prompt.messages[0].parts[0]", with_part(Image(Media("image/png", data=b"x")), Role.ASSISTANT)),
    (
        "prompt.messages[0].parts[0].tool_call.name",
        with_messages(assistant(ToolCall("a", "has space", "{}"))),
    ),
    ("prompt.messages[0].parts[0].tool_call.call_id", with_messages(assistant(ToolCall("", "weather", "{}")))),
    (
        "prompt.messages[0].parts[0].tool_call.arguments_json",
        with_messages(assistant(ToolCall("a", "weather", "x" * (256 * 1024 + 1)))),
    ),
    ("prompt.messages[0].parts", with_messages(assistant(CALL, CALL))),
    (
        "prompt.messages[1].parts[0].tool_result.call_id",
        with_messages(assistant(CALL), Message(Role.TOOL, (ToolResult("b", ()),))),
    ),
    (
        "prompt.messages[1].parts[0].tool_result.parts[0]",
        with_messages(assistant(CALL), Message(Role.TOOL, (ToolResult("a", (CALL,)),))),
    ),
    ("prompt.tools", prompt(tools=tuple(ToolDefinition(f"t{n}") for n in range(129)))),
    ("prompt.tools[0].name", prompt(tools=(ToolDefinition("has space"),))),
    ("prompt.tools[1].name", prompt(tools=(WEATHER, WEATHER))),
    ("prompt.tools[0].description", prompt(tools=(ToolDefinition("t", "x" * (16 * 1024 + 1)),))),
    ("prompt.tools[0].parameters_schema_json", prompt(tools=(ToolDefinition("t", "", "{"),))),
    ("prompt.tools[0].parameters_schema_json", prompt(tools=(ToolDefinition("t", "", "[]"),))),
    ("prompt.tools[0].parameters_schema_json", prompt(tools=(ToolDefinition("t", "", '{"type": "string"}'),))),
    ("prompt.tools[0].parameters_schema_json", prompt(tools=(ToolDefinition("t", "", DEEP),))),
    (
        "prompt.tools[0].parameters_schema_json",
        prompt(tools=(ToolDefinition("t", "", json.dumps({"x": "y" * 65_536})),)),
    ),
    ("prompt.tool_choice.name", prompt(tools=(WEATHER,), tool_choice=ToolChoice(ToolChoiceMode.NAMED, "no"))),
    ("prompt.tool_choice.name", prompt(tools=(WEATHER,), tool_choice=ToolChoice(ToolChoiceMode.AUTO, "x"))),
    ("prompt.tool_choice.mode", prompt(tool_choice=ToolChoice(ToolChoiceMode.REQUIRED))),
    ("prompt.response_format.json_schema.name", prompt(response_format=JsonSchemaFormat("", "{}"))),
    ("prompt.response_format.json_schema.schema_json", prompt(response_format=JsonSchemaFormat("n", ""))),
    ("prompt.sampling.temperature", prompt(sampling=Sampling(temperature=2.1))),
    ("prompt.sampling.temperature", prompt(sampling=Sampling(temperature=NAN))),
    ("prompt.sampling.top_p", prompt(sampling=Sampling(top_p=0.0))),
    ("prompt.sampling.top_p", prompt(sampling=Sampling(top_p=float("inf")))),
    ("prompt.sampling.top_k", prompt(sampling=Sampling(top_k=0))),
    ("prompt.sampling.frequency_penalty", prompt(sampling=Sampling(frequency_penalty=-2.1))),
    ("prompt.sampling.presence_penalty", prompt(sampling=Sampling(presence_penalty=3))),
    ("prompt.sampling.top_logprobs", prompt(sampling=Sampling(top_logprobs=21))),
    ("prompt.stop", prompt(stop=("x",) * 17)),
    ("prompt.stop[1]", prompt(stop=("x", ""))),
    ("prompt.max_output_tokens", prompt(max_output_tokens=0)),
    ("prompt.max_output_tokens", prompt(max_output_tokens=1_000_001)),
    ("prompt.reasoning.budget_tokens", prompt(reasoning=ReasoningOptions(budget_tokens=-1))),
    ("prompt.timeouts.connect", prompt(timeouts=Timeouts(connect=0))),
    ("prompt.timeouts.total", prompt(timeouts=Timeouts(total=3601))),
    ("prompt.routing.fallbacks", prompt(routing=Routing(("a/b",) * 9))),
    ("prompt.routing.hedge_after", prompt(routing=Routing(hedge_after=0.001))),
    ("prompt.linger", prompt(linger=601)),
    ("prompt.labels", prompt(labels={f"k{n}": "v" for n in range(17)})),
    ("prompt.labels[Upper]", prompt(labels={"Upper": "v"})),
    ("prompt.labels[k]", prompt(labels={"k": "v" * 129})),
    ("prompt.provider_options_json", prompt(provider_options_json="nope")),
    ("prompt.provider_options_json", prompt(provider_options_json='{"a": NaN}')),
    ("prompt.request_id", prompt(request_id="has space")),
]


@pytest.mark.parametrize(("field", "asked"), BAD, ids=[f"{n}-{row[0]}" for n, row in enumerate(BAD)])
def test_what_breaks_a_bound_is_named(field: str, asked: Prompt) -> None:
    with pytest.raises(InvalidArgument) as raised:
        validate(asked)
    assert field in [violation.field for violation in raised.value.violations]


def test_all_violations_come_at_once() -> None:
    asked = prompt(stop=("",), max_output_tokens=0, sampling=Sampling(temperature=-1))
    with pytest.raises(InvalidArgument) as raised:
        validate(asked)
    assert len(raised.value.violations) == 3


def test_a_prompt_at_every_bound_is_fine() -> None:
    validate(
        Prompt(
            messages=(
                Message(Role.SYSTEM, (Text("be brief"),)),
                user(Text("x" * 1024 * 1024), Image(Media("image/png", data=b"x" * 3 * 1024**2))),
                assistant(Reasoning("hm", signature=b"s", issuer="anthropic"), CALL),
                Message(Role.TOOL, (RESULT,)),
                user(Image(Media("image/svg+xml; charset=utf-8", data=b"x")), Image(Media("", uri="https://x.org/"))),
                user(name="n" * 128, id="i" * 128),
            ),
            model="m" * 256,
            tools=(WEATHER,),
            tool_choice=ToolChoice(ToolChoiceMode.NAMED, "weather"),
            sampling=Sampling(0, 1, 1, -2, 2, -(2**63), 20),
            stop=("x" * 256,) * 16,
            max_output_tokens=1_000_000,
            reasoning=ReasoningOptions(Effort.NONE, 0),
            timeouts=Timeouts(0.001, 3600, 1, 1),
            labels={"a.b-c_1": "v" * 128},
            provider_options_json='{"x": {"y": [1]}}',
        )
    )


@pytest.mark.parametrize(
    ("field", "inputs", "dimensions"),
    [
        ("inputs", [], None),
        ("inputs", ["x"] * 2049, None),
        ("inputs[1]", ["x", ""], None),
        ("inputs[0]", ["x" * 32_769], None),
        ("dimensions", ["x"], 0),
        ("dimensions", ["x"], 4097),
    ],
)
def test_embeddings_have_bounds_too(field: str, inputs: list[str], dimensions: int | None) -> None:
    with pytest.raises(InvalidArgument) as raised:
        validate_embedding("", inputs, dimensions, {})
    assert raised.value.violations[0].field == field


@pytest.mark.parametrize(
    ("schema", "rule"),
    [
        ({"properties": {str(number): {} for number in range(1000)}}, "objects and arrays"),
        ({"properties": {"a": {"$ref": "https://example.org/schema"}}}, "only within itself"),
        ({"properties": {"a": {"$ref": "other.json#/a"}}}, "only within itself"),
    ],
)
def test_schemas_are_bounded_and_refer_only_to_themselves(schema: dict[str, Any], rule: str) -> None:
    text = json.dumps(schema)
    with pytest.raises(InvalidArgument) as raised:
        validate(
            prompt(
                tools=(ToolDefinition("a", parameters_schema_json=text),),
                response_format=JsonSchemaFormat("a", text),
            )
        )
    assert [violation.field for violation in raised.value.violations] == [
        "prompt.tools[0].parameters_schema_json",
        "prompt.response_format.json_schema.schema_json",
    ]
    assert all(rule in violation.rule for violation in raised.value.violations)
