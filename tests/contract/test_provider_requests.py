"""The requests that prompts become, held against the SDKs' own types."""

import json
from typing import Any

import pytest
from tests.fakes.providers.prompts import prompt
from tests.fakes.providers.typed_requests import SCHEMA, adapter, chat, messages, refused_fields

from janus_inference.dialects.anthropic_request import count_body, messages_body
from janus_inference.dialects.openai_chat_request import chat_body
from janus_inference.model import (
    Citation,
    Effort,
    Image,
    JsonFormat,
    JsonSchemaFormat,
    Media,
    Message,
    Opaque,
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
    ToolDefinition,
    ToolResult,
)
from janus_inference.profiles import OPENAI, ChatProfile
from janus_kit.errors import InvalidArgument

PNG = Media("image/png", data=b"\x89PNG")
CONVERSATION = (
    Message(Role.SYSTEM, (Text("be kind"),)),
    Message(Role.USER, (Text("what is this?"), Image(PNG)), name="Caroline"),
    Message(
        Role.ASSISTANT,
        (
            Reasoning("hm", signature=b"c2ln", issuer="anthropic"),
            Reasoning(redacted=b"ZW5j", issuer="anthropic"),
            Reasoning("not for you", signature=b"x", issuer="somebody"),
            Text("Let me look."),
            Citation(title="A", uri="https://a"),
            Opaque(
                "anthropic", "server_tool_use", b'{"type":"server_tool_use","id":"s","name":"web_search","input":{}}'
            ),
            Opaque("somebody", "block", b"\xff"),
            ToolCall("a", "weather", '{"city": "Rome"}'),
            ToolCall("b", "weather", "{broken"),
        ),
    ),
    Message(
        Role.TOOL,
        (ToolResult("a", (Text("sunny"),)), ToolResult("b", (Text("no such city"),), is_error=True)),
    ),
    Message(Role.USER, (Text("thanks", cache_breakpoint=True),)),
    Message(Role.ASSISTANT, (Refusal("No more."),)),
    Message(Role.USER, (Image(Media("", uri="https://example.org/x.png")),)),
)
RICH = Prompt(
    CONVERSATION,
    system="be brief",
    tools=(ToolDefinition("weather", "Tells it", SCHEMA, strict=True), ToolDefinition("clock")),
    tool_choice=ToolChoice(ToolChoiceMode.NAMED, "weather"),
    parallel_tool_calls=False,
    sampling=Sampling(temperature=0.5, top_p=0.9),
    stop=("END",),
    max_output_tokens=20_000,
)


CITED: list[dict[str, Any]] = [
    {
        "type": "char_location",
        "cited_text": "q",
        "document_index": 0,
        "document_title": "D",
        "start_char_index": 0,
        "end_char_index": 3,
    },
    {
        "type": "page_location",
        "cited_text": "q",
        "document_index": 0,
        "document_title": None,
        "start_page_number": 1,
        "end_page_number": 2,
    },
    {
        "type": "content_block_location",
        "cited_text": "q",
        "document_index": 1,
        "document_title": None,
        "start_block_index": 0,
        "end_block_index": 1,
    },
    {
        "type": "search_result_location",
        "cited_text": "q",
        "search_result_index": 0,
        "source": "https://s",
        "title": "S",
        "start_block_index": 0,
        "end_block_index": 1,
    },
    {
        "type": "web_search_result_location",
        "cited_text": "q",
        "encrypted_index": "ZW5j",
        "title": None,
        "url": "https://w",
    },
]


def cited(*sources: Citation, text: str = "It rains.") -> Prompt:
    answer = Message(Role.ASSISTANT, (Text("First,"), Text(text), *sources))
    return Prompt((Message(Role.USER, (Text("and?"),)), answer, Message(Role.USER, (Text("more"),))))


def source(said: Any, issuer: str = "anthropic") -> Citation:
    return Citation(quote="q", part_index=1, issuer=issuer, data=json.dumps(said).encode())


def test_sources_of_an_earlier_answer_go_back_with_their_text() -> None:
    body = messages(cited(*map(source, CITED)))
    first, second = body["messages"][1]["content"]
    assert "citations" not in first
    assert second == {"type": "text", "text": "It rains.", "citations": CITED}


def test_of_a_source_what_a_request_may_not_say_stays_away() -> None:
    answered = {**CITED[0], "file_id": "file_1"}
    del answered["document_title"]
    (_, second) = messages(cited(source(answered)))["messages"][1]["content"]
    assert second["citations"] == [{**CITED[0], "document_title": None}]


@pytest.mark.parametrize(
    "kept", [source(CITED[0], issuer="somebody"), Citation(quote="q", part_index=1), source({"type": "moon_location"})]
)
def test_sources_of_others_and_of_new_kinds_are_not_said_again(kept: Citation) -> None:
    assert all("citations" not in block for block in messages(cited(kept))["messages"][1]["content"])


def test_a_source_of_a_text_that_is_not_said_is_not_said_either() -> None:
    assert messages(cited(source(CITED[0]), text=" "))["messages"][1]["content"] == [{"type": "text", "text": "First,"}]


@pytest.mark.parametrize(
    "data",
    [
        b"[]",
        b"{}",
        b"\xff",
        *(
            json.dumps({**CITED[0], name: value}).encode()
            for name, value in (
                ("document_index", "0"),
                ("end_char_index", True),
                ("document_title", 1),
                ("cited_text", None),
            )
        ),
        json.dumps({"type": "web_search_result_location", "cited_text": "q", "url": "https://w"}).encode(),
    ],
)
def test_a_source_that_its_issuer_could_not_have_said_is_named(data: bytes) -> None:
    kept = Citation(quote="q", part_index=1, issuer="anthropic", data=data)
    with pytest.raises(InvalidArgument) as raised:
        messages(cited(kept))
    assert raised.value.violations[0].field == "prompt.messages[1].parts[2].citation.data"


def test_a_whole_conversation_for_chat() -> None:
    body = chat(RICH)
    said = body.pop("messages")
    assert [(each["role"], each.get("tool_call_id")) for each in said] == [
        ("system", None),
        ("system", None),
        ("user", None),
        ("assistant", None),
        ("tool", "a"),
        ("tool", "b"),
        ("user", None),
        ("assistant", None),
        ("user", None),
    ]
    assert said[2]["name"] == "Caroline"
    assert said[2]["content"][1]["image_url"]["url"] == "data:image/png;base64,iVBORw=="
    assert said[3]["content"] == "Let me look."
    assert [call["function"]["arguments"] for call in said[3]["tool_calls"]] == [
        '{"city": "Rome"}',
        '{"invalid_json": "{broken"}',
    ]
    assert said[5]["content"] == "Error: no such city"
    assert said[7]["refusal"] == "No more."
    assert said[8]["content"][0]["image_url"]["url"] == "https://example.org/x.png"
    parameters = json.loads(SCHEMA)
    assert body == {
        "model": "gpt",
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "weather",
                    "description": "Tells it",
                    "parameters": parameters,
                    "strict": True,
                },
            },
            {"type": "function", "function": {"name": "clock"}},
        ],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": False,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["END"],
        "max_completion_tokens": 20_000,
    }


def test_a_whole_conversation_for_messages() -> None:
    body = messages(RICH)
    said = body.pop("messages")
    assert [each["role"] for each in said] == ["user", "assistant", "user", "assistant", "user"]
    assert said[0]["content"][1]["source"] == {
        "type": "base64",
        "media_type": "image/png",
        "data": "iVBORw==",
    }
    assert said[1]["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
        {"type": "redacted_thinking", "data": "ZW5j"},
        {"type": "text", "text": "Let me look."},
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
        {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Rome"}},
        {"type": "tool_use", "id": "b", "name": "weather", "input": {"invalid_json": "{broken"}},
    ]
    assert said[2]["content"] == [
        {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "sunny"}]},
        {
            "type": "tool_result",
            "tool_use_id": "b",
            "content": [{"type": "text", "text": "no such city"}],
            "is_error": True,
        },
        {"type": "text", "text": "thanks", "cache_control": {"type": "ephemeral"}},
    ]
    assert body == {
        "model": "claude",
        "max_tokens": 20_000,
        "stream": True,
        "system": "be brief\n\nbe kind",
        "tools": [
            {
                "name": "weather",
                "input_schema": json.loads(SCHEMA),
                "description": "Tells it",
                "strict": True,
            },
            {"name": "clock", "input_schema": {"type": "object", "properties": {}}},
        ],
        "tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
        "stop_sequences": ["END"],
        "temperature": 0.5,
        "top_p": 0.9,
    }


@pytest.mark.parametrize(
    ("mode", "openai", "anthropic"),
    [
        (ToolChoiceMode.AUTO, "auto", "auto"),
        (ToolChoiceMode.NONE, "none", "none"),
        (ToolChoiceMode.REQUIRED, "required", "any"),
    ],
)
def test_rules_for_tools(mode: ToolChoiceMode, openai: str, anthropic: str) -> None:
    asked = prompt(tools=(ToolDefinition("clock"),), tool_choice=ToolChoice(mode))
    assert chat(asked)["tool_choice"] == openai
    assert messages(asked)["tool_choice"] == {"type": anthropic}


def test_an_answer_to_a_schema() -> None:
    asked = prompt(response_format=JsonSchemaFormat("city", SCHEMA, "A city", strict=True))
    schema = json.loads(SCHEMA)
    assert chat(asked)["response_format"]["json_schema"] == {
        "name": "city",
        "description": "A city",
        "schema": schema,
        "strict": True,
    }
    assert messages(asked)["output_config"] == {"format": {"type": "json_schema", "schema": schema}}
    assert chat(prompt(response_format=JsonFormat()))["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize(
    ("options", "effort", "thinking"),
    [
        (ReasoningOptions(Effort.HIGH), "high", {"type": "enabled", "budget_tokens": 16_384}),
        (ReasoningOptions(Effort.NONE), "none", {"type": "disabled"}),
        (ReasoningOptions(), None, None),
    ],
)
def test_reasoning(options: ReasoningOptions, effort: str | None, thinking: Any) -> None:
    asked = prompt(reasoning=options)
    assert chat(asked).get("reasoning_effort") == effort
    assert messages(asked).get("thinking") == thinking


def test_the_default_limit_leaves_room_beside_the_reasoning() -> None:
    budget = ReasoningOptions(budget_tokens=10_000)
    assert messages(prompt(reasoning=budget))["max_tokens"] == 14_096
    assert messages_body(prompt(), "claude-sonnet-4-5", "anthropic")["max_tokens"] == 64_000


def test_reasoning_goes_back_to_its_issuer_alone() -> None:
    details = Opaque("openrouter", "reasoning_details", b'[{"type":"reasoning.text"}]')
    asked = Prompt((Message(Role.ASSISTANT, (Reasoning("hm", issuer="openrouter"), details, Text("x"))),))
    profile = ChatProfile(reasoning_field="reasoning_content")
    own = chat_body(asked, "m", profile, "openrouter")["messages"][0]
    assert (own["reasoning_content"], own["reasoning_details"]) == ("hm", [{"type": "reasoning.text"}])
    assert chat_body(asked, "m", profile, "another")["messages"][0] == {"role": "assistant", "content": "x"}
    assert messages_body(asked, "m", "anthropic")["messages"][0]["content"] == [{"type": "text", "text": "x"}]


CHAT_CANNOT: list[tuple[str, dict[str, Any]]] = [
    ("prompt.stop", {"stop": ("a", "b", "c", "d", "e")}),
    ("prompt.sampling.top_k", {"sampling": Sampling(top_k=5)}),
    ("prompt.reasoning.budget_tokens", {"reasoning": ReasoningOptions(budget_tokens=5)}),
]
MESSAGES_CANNOT: list[tuple[str, dict[str, Any]]] = [
    ("prompt.sampling.seed", {"sampling": Sampling(seed=5)}),
    ("prompt.sampling.frequency_penalty", {"sampling": Sampling(frequency_penalty=1)}),
    ("prompt.sampling.presence_penalty", {"sampling": Sampling(presence_penalty=1)}),
    ("prompt.sampling.temperature", {"sampling": Sampling(temperature=1.5)}),
    ("prompt.response_format.json", {"response_format": JsonFormat()}),
    (
        "prompt.reasoning.budget_tokens",
        {"reasoning": ReasoningOptions(budget_tokens=500), "max_output_tokens": 500},
    ),
]


@pytest.mark.parametrize(("field", "fields"), CHAT_CANNOT)
def test_what_chat_cannot_say_is_refused(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as raised:
        chat_body(prompt(**fields), "gpt", OPENAI, "openai")
    assert refused_fields(raised.value) == [field]


@pytest.mark.parametrize(("field", "fields"), MESSAGES_CANNOT)
def test_what_messages_cannot_say_is_refused(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as raised:
        messages_body(prompt(**fields), "claude", "anthropic")
    assert refused_fields(raised.value) == [field]


def test_counting_says_what_an_answer_would_but_for_its_form() -> None:
    body = count_body(RICH, "claude", "anthropic")
    adapter("count").dump_python(adapter("count").validate_python(body))
    whole = messages_body(RICH, "claude", "anthropic")
    assert whole == body | {name: whole[name] for name in whole.keys() - body.keys()}
    assert whole.keys() - body.keys() == {"max_tokens", "stream", "stop_sequences", "temperature", "top_p"}


def test_a_picture_from_a_tool_is_refused_where_it_cannot_go() -> None:
    result = Message(Role.TOOL, (ToolResult("a", (Text("x"), Image(PNG))),))
    with pytest.raises(InvalidArgument) as raised:
        chat_body(Prompt((result,)), "gpt", OPENAI, "openai")
    assert refused_fields(raised.value) == ["prompt.messages[0].parts[0].tool_result.parts[1].image"]
    body = messages_body(Prompt((result,)), "claude", "anthropic")
    assert body["messages"][0]["content"][0]["content"][1]["type"] == "image"


@pytest.mark.parametrize(
    ("part", "path"),
    [
        (Opaque("anthropic", "block", b"\xff"), "prompt.messages[0].parts[0].opaque.data"),
        (Opaque("anthropic", "block", b"[1]"), "prompt.messages[0].parts[0].opaque.data"),
        (Reasoning("x", signature=b"\xff", issuer="anthropic"), "prompt.messages[0].parts[0].reasoning"),
    ],
)
def test_a_block_that_its_issuer_never_wrote_is_refused(part: Any, path: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        messages_body(Prompt((Message(Role.ASSISTANT, (part,)),)), "claude", "anthropic")
    assert raised.value.violations[0].field == path
