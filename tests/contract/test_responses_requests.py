"""The Responses requests that prompts become, held against the SDK's own types."""

import json
from functools import cache
from typing import Any

import pytest
from pydantic import TypeAdapter, with_config
from tests.fakes.providers import openai_wire
from tests.fakes.providers.http_server import serving
from tests.fakes.providers.prompts import prompt

from janus_inference.adapters.openai_auto import OpenAIAuto
from janus_inference.adapters.openai_chat import OpenAIChat
from janus_inference.adapters.openai_client import OpenAIClient
from janus_inference.adapters.openai_responses import OpenAIResponses
from janus_inference.adapters.options import with_options
from janus_inference.dialects.openai_responses_request import LISTS, OBJECTS, RESERVED, counted, responses_body
from janus_inference.dialects.openai_responses_stream import ResponsesReader
from janus_inference.dialects.parts import CallCheck
from janus_inference.events import OpaqueAdded, ReasoningSignature, ToolCallCompleted
from janus_inference.model import (
    Audio,
    Citation,
    Document,
    Effort,
    Image,
    JsonFormat,
    JsonSchemaFormat,
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
    ToolDefinition,
    ToolResult,
)
from janus_inference.ports import Ask
from janus_inference.profiles import OPENAI, PROFILES, ChatProfile
from janus_inference.provider_errors import ProviderFailure
from janus_inference.stopwatch import Unwatched
from janus_kit.errors import InvalidArgument

SCHEMA = '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}'
PNG, PDF = Media("image/png", data=b"\x89PNG"), Media("application/pdf", data=b"%PDF")
THOUGHT = {"id": "rs_1", "type": "reasoning", "summary": [], "encrypted_content": "ZW5j"}
SEARCH = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}}


@cache
def params() -> TypeAdapter[Any]:
    """The SDK's request type; a field that it does not have is an error."""
    from openai.types.responses.response_create_params import ResponseCreateParamsStreaming as Params

    return TypeAdapter(with_config({"extra": "forbid"})(Params))


def responses(asked: Prompt, model: str = "gpt-unheard-of", profile: ChatProfile = OPENAI) -> dict[str, Any]:
    body = responses_body(asked, model, profile, "openai")
    params().dump_python(params().validate_python(body))
    return body


def own(item: Any) -> Opaque:
    return Opaque("openai", item["type"], json.dumps(item).encode())


def proof(item: Any, issuer: str = "openai") -> Reasoning:
    return Reasoning(summary="hm", signature=json.dumps(item).encode(), issuer=issuer)


def answered(*parts: Part) -> list[Any]:
    return list(responses(Prompt((Message(Role.ASSISTANT, parts),)))["input"])


def test_a_whole_conversation() -> None:
    conversation = (
        Message(Role.SYSTEM, (Text("be kind"),)),
        Message(Role.USER, (Text("what is this?"), Image(PNG)), name="Caroline"),
        Message(
            Role.ASSISTANT,
            (
                proof(THOUGHT),
                proof({"type": "reasoning", "id": "theirs"}, "somebody"),
                Text("Let me "),
                Citation(title="A", uri="https://a"),
                Text("look."),
                own(SEARCH),
                Opaque("somebody", "block", b"\xff"),
                ToolCall("a", "weather", '{"city": "Rome"}'),
                ToolCall("b", "weather", ""),
            ),
        ),
        Message(
            Role.TOOL,
            (ToolResult("a", (Text("sunny"),)), ToolResult("b", (Text("no such city"),), is_error=True)),
        ),
        Message(Role.USER, (Text("thanks"),)),
        Message(Role.ASSISTANT, (Refusal("No more."),)),
        Message(Role.USER, (Image(Media("", uri="https://example.org/x.png")),)),
    )
    body = responses(
        Prompt(
            conversation,
            system="be brief",
            tools=(ToolDefinition("weather", "Tells it", SCHEMA, strict=True), ToolDefinition("clock")),
            tool_choice=ToolChoice(ToolChoiceMode.NAMED, "weather"),
            parallel_tool_calls=False,
            sampling=Sampling(temperature=0.5, top_p=0.9, top_logprobs=3),
            max_output_tokens=20_000,
        )
    )
    assert body == {
        "model": "gpt-unheard-of",
        "stream": True,
        "store": False,
        "instructions": "be brief",
        "input": [
            {"role": "system", "content": "be kind"},
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "what is this?"},
                    {"type": "input_image", "image_url": "data:image/png;base64,iVBORw==", "detail": "auto"},
                ],
            },
            THOUGHT,
            {"role": "assistant", "content": "Let me look."},
            SEARCH,
            {"type": "function_call", "call_id": "a", "name": "weather", "arguments": '{"city": "Rome"}'},
            {"type": "function_call", "call_id": "b", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a", "output": "sunny"},
            {"type": "function_call_output", "call_id": "b", "output": "Error: no such city"},
            {"role": "user", "content": "thanks"},
            {"role": "assistant", "content": "No more."},
            {
                "role": "user",
                "content": [{"type": "input_image", "image_url": "https://example.org/x.png", "detail": "auto"}],
            },
        ],
        "tools": [
            {
                "type": "function",
                "name": "weather",
                "description": "Tells it",
                "parameters": json.loads(SCHEMA),
                "strict": True,
            },
            {"type": "function", "name": "clock", "parameters": {"type": "object", "properties": {}}, "strict": False},
        ],
        "tool_choice": {"type": "function", "name": "weather"},
        "parallel_tool_calls": False,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_logprobs": 3,
        "max_output_tokens": 20_000,
        "include": ["message.output_text.logprobs"],
    }


def test_documents() -> None:
    notes = Document(Media("text/markdown", data=b"# Notes"), title="Notes")
    there = Document(Media("", uri="https://example.org/a.pdf"))
    asked = Prompt((Message(Role.USER, (Document(PDF, title="Report"), notes, there)),))
    assert responses(asked)["input"][0]["content"] == [
        {"type": "input_file", "filename": "Report.pdf", "file_data": "data:application/pdf;base64,JVBERg=="},
        {"type": "input_text", "text": "Document “Notes”:\n# Notes"},
        {"type": "input_file", "file_url": "https://example.org/a.pdf"},
    ]
    with pytest.raises(InvalidArgument) as raised:
        responses(asked, profile=PROFILES["ollama"])
    assert refused_fields(raised.value) == ["prompt.messages[0].parts[0].document"]


def test_a_tool_may_answer_with_pictures_and_documents() -> None:
    result = ToolResult("a", (Text("x"), Image(PNG), Document(PDF)), is_error=True)
    (item,) = responses(Prompt((Message(Role.TOOL, (result,)),)))["input"]
    assert [block["type"] for block in item["output"]] == ["input_text", "input_text", "input_image", "input_file"]
    assert item["output"][0]["text"] == "Error:"


@pytest.mark.parametrize("mode", [ToolChoiceMode.AUTO, ToolChoiceMode.NONE, ToolChoiceMode.REQUIRED])
def test_rules_for_tools(mode: ToolChoiceMode) -> None:
    assert (
        responses(prompt(tools=(ToolDefinition("clock"),), tool_choice=ToolChoice(mode)))["tool_choice"] == mode.value
    )


def test_an_answer_to_a_schema() -> None:
    wanted = JsonSchemaFormat("city", SCHEMA, "A city", strict=True)
    said = {"type": "json_schema", "name": "city", "schema": json.loads(SCHEMA), "strict": True}
    assert responses(prompt(response_format=wanted))["text"]["format"] == said | {"description": "A city"}
    assert responses(prompt(response_format=JsonFormat()))["text"] == {"format": {"type": "json_object"}}
    with pytest.raises(InvalidArgument) as raised:
        responses(prompt(response_format=wanted), "gpt-4")
    assert refused_fields(raised.value) == ["prompt.response_format.json_schema.strict"]
    loose = responses(prompt(response_format=JsonSchemaFormat("city", SCHEMA)), "gpt-4")
    assert loose["text"] == {"format": {"type": "json_object"}}
    assert SCHEMA in loose["input"][0]["content"]


@pytest.mark.parametrize(
    ("model", "options", "said", "encrypted"),
    [
        ("gpt-5", ReasoningOptions(Effort.HIGH, summary=True), {"effort": "high", "summary": "auto"}, True),
        ("gpt-5", ReasoningOptions(summary=True), {"summary": "auto"}, True),
        ("gpt-5", None, None, True),
        ("gpt-5.2", ReasoningOptions(Effort.NONE, summary=True), {"effort": "none"}, True),
        ("gpt-5.2", ReasoningOptions(budget_tokens=0), {"effort": "none"}, True),
        ("o3", ReasoningOptions(Effort.MINIMAL), {"effort": "low"}, True),
        ("gpt-4o", ReasoningOptions(Effort.NONE, summary=True), None, False),
        ("gpt-4o", ReasoningOptions(summary=True), None, False),
        ("gpt-unheard-of", ReasoningOptions(Effort.LOW), {"effort": "low"}, True),
        ("gpt-unheard-of", None, None, False),
    ],
)
def test_reasoning(model: str, options: ReasoningOptions | None, said: Any, encrypted: bool) -> None:
    body = responses(prompt(reasoning=options), model)
    assert body.get("reasoning") == said
    assert body.get("include", []) == (["reasoning.encrypted_content"] if encrypted else [])


def test_a_router_takes_a_number_of_tokens_to_think() -> None:
    asked = prompt(reasoning=ReasoningOptions(budget_tokens=2000))
    body = responses_body(asked, "anthropic/claude-sonnet-4.5", PROFILES["openrouter"], "openrouter")
    assert body["reasoning"] == {"max_tokens": 2000}


def test_reasoning_goes_back_as_it_came() -> None:
    summary = [{"type": "summary_text", "text": "One."}, {"type": "summary_text", "text": "Two."}]
    items: list[Any] = [
        {"id": "rs_1", "type": "reasoning", "summary": summary, "encrypted_content": "ZW5j/é", "content": None},
        {"id": "ws_1", "type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "é"}},
        {"id": "fc_1", "type": "function_call", "call_id": "a", "name": "f", "arguments": "{}", "namespace": "n"},
    ]
    answer = {"id": "r", "status": "completed", "output": items}
    reader = ResponsesReader("upstream", "model", "openai", CallCheck({}))
    parts: list[Part] = []
    for event in reader.body(json.dumps(answer).encode()):
        match event:
            case ReasoningSignature():
                parts.append(Reasoning(summary="One.\n\nTwo.", signature=event.signature, issuer=event.issuer))
            case OpaqueAdded(part=part) | ToolCallCompleted(call=part):
                parts.append(part)
    back = responses_body(Prompt((Message(Role.ASSISTANT, tuple(parts)),)), "gpt-5", OPENAI, "openai")["input"]
    assert back == [*items[:2], {key: value for key, value in items[2].items() if key != "id"}]
    assert json.dumps(back[0]) == json.dumps(items[0])
    elsewhere = responses_body(Prompt((Message(Role.ASSISTANT, tuple(parts)),)), "m", OPENAI, "another")["input"]
    assert elsewhere == [{"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}]


def test_reasoning_that_the_provider_could_not_find_again_is_left_out() -> None:
    assert answered(proof({"id": "rs_1", "type": "reasoning", "summary": []}), Text("x")) == [
        {"role": "assistant", "content": "x"}
    ]
    raw = {"id": "rs_1", "type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    assert answered(proof(raw)) == [raw]
    assert answered(Reasoning("of Chat Completions", issuer="openai"), Text("x"))[0]["content"] == "x"
    assert answered(Opaque("openai", "reasoning_details", b"[]"), Text("x")) == [{"role": "assistant", "content": "x"}]


def test_the_phase_of_a_message_goes_back_with_it_alone() -> None:
    phase = Opaque("openai", "message", b'{"phase":"commentary","role":"system","content":"y"}')
    assert answered(Text("Hm."), phase, Text("Wait."), own(SEARCH), Text("Done.")) == [
        {"role": "assistant", "content": "Hm."},
        {"role": "assistant", "content": "Wait.", "phase": "commentary"},
        SEARCH,
        {"role": "assistant", "content": "Done."},
    ]


def test_the_result_of_a_call_that_a_program_made_goes_to_that_program() -> None:
    about = {"call_id": "a", "caller": {"type": "program", "caller_id": "p"}}
    call = (Opaque("openai", "function_call", json.dumps(about).encode()), ToolCall("a", "f", "{}"))
    asked = Prompt((Message(Role.ASSISTANT, call), Message(Role.TOOL, (ToolResult("a", (Text("x"),)),))))
    assert [item["caller"] for item in responses(asked)["input"]] == [about["caller"]] * 2


@pytest.mark.parametrize(
    ("part", "path"),
    [
        (Opaque("openai", "block", b"\xff"), "prompt.messages[0].parts[0].opaque.data"),
        (Opaque("openai", "block", b"[1]"), "prompt.messages[0].parts[0].opaque.data"),
        (Opaque("openai", "block", b'{"type": "message"}'), "prompt.messages[0].parts[0].opaque.data"),
        (Reasoning(signature=b"\xff", issuer="openai"), "prompt.messages[0].parts[0].reasoning"),
        (Reasoning(signature=b'{"type": "message"}', issuer="openai"), "prompt.messages[0].parts[0].reasoning"),
    ],
)
def test_a_block_that_its_issuer_never_wrote_is_refused(part: Part, path: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        responses_body(Prompt((Message(Role.ASSISTANT, (part,)),)), "m", OPENAI, "openai")
    assert raised.value.violations[0].field == path


@pytest.mark.parametrize(
    ("model", "profile", "marked"),
    [
        ("gpt-5.6", "openai", True),
        ("gpt-5.6-sol", "openai", True),
        ("openai/gpt-6", "openrouter", True),
        ("gpt-5.2", "openai", False),
        ("gpt-6", "vllm", False),
    ],
)
def test_breakpoints_go_to_the_models_that_take_them(model: str, profile: str, marked: bool) -> None:
    parts = (Text("long", cache_breakpoint=True), Text("short"))
    result = ToolResult("a", (Text("long"),), cache_breakpoint=True)
    asked = Prompt((Message(Role.USER, parts), Message(Role.TOOL, (result,))))
    said, output = responses(asked, model, PROFILES[profile])["input"]
    mark = {"prompt_cache_breakpoint": {"mode": "explicit"}} if marked else {}
    first, second = said["content"]
    assert first == {"type": "input_text", "text": "long"} | mark
    assert second == {"type": "input_text", "text": "short"}
    assert output["output"] == ([{"type": "input_text", "text": "long"} | mark] if marked else "long")


def refused_fields(error: InvalidArgument) -> list[str]:
    assert error.reason == "CAPABILITY_UNSUPPORTED"
    assert error.metadata["capability"]
    return [violation.field for violation in error.violations]


CANNOT: list[tuple[str, dict[str, Any]]] = [
    ("prompt.stop", {"stop": ("END",)}),
    ("prompt.sampling.top_k", {"sampling": Sampling(top_k=5)}),
    ("prompt.sampling.seed", {"sampling": Sampling(seed=0)}),
    ("prompt.sampling.frequency_penalty", {"sampling": Sampling(frequency_penalty=0.5)}),
    ("prompt.sampling.presence_penalty", {"sampling": Sampling(presence_penalty=0.5)}),
    ("prompt.max_output_tokens", {"max_output_tokens": 15}),
    ("prompt.reasoning.budget_tokens", {"reasoning": ReasoningOptions(budget_tokens=5)}),
]


@pytest.mark.parametrize(("field", "fields"), CANNOT)
def test_what_responses_cannot_say_is_refused(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as raised:
        responses(prompt(**fields))
    assert refused_fields(raised.value) == [field]


def test_sound_is_refused_by_its_path() -> None:
    sound = Audio(Media("audio/wav", data=b"RIFF"))
    with pytest.raises(InvalidArgument) as raised:
        responses(Prompt((Message(Role.USER, (Text("x"), sound)),)))
    assert refused_fields(raised.value) == ["prompt.messages[0].parts[1].audio"]


def test_options_stand_beside_what_janus_says_in_the_same_field() -> None:
    asked = prompt(
        tools=(ToolDefinition("clock"),),
        reasoning=ReasoningOptions(Effort.LOW),
        response_format=JsonFormat(),
        sampling=Sampling(top_logprobs=1),
    )
    body = responses(asked)
    options = {
        "tools": [{"type": "web_search"}],
        "include": ["web_search_call.action.sources", "message.output_text.logprobs"],
        "text": {"verbosity": "low"},
        "reasoning": {"context": "all_turns"},
        "service_tier": "flex",
    }
    body |= with_options(body, options, RESERVED, lists=LISTS, objects=OBJECTS)
    assert body["service_tier"] == "flex"
    assert [tool["type"] for tool in body["tools"]] == ["function", "web_search"]
    assert body["include"][-1] == "web_search_call.action.sources"
    assert len(body["include"]) == 3
    assert body["text"] == {"format": {"type": "json_object"}, "verbosity": "low"}
    assert body["reasoning"] == {"effort": "low", "context": "all_turns"}
    with pytest.raises(InvalidArgument) as raised:
        with_options(responses(asked), {"reasoning": {"effort": "high"}}, RESERVED, objects=OBJECTS)
    assert raised.value.violations[0].field == "prompt.provider_options_json"


def test_counting_takes_what_is_read_and_not_how_it_is_answered() -> None:
    from openai.types.responses.input_token_count_params import InputTokenCountParams

    asked = prompt(tools=(ToolDefinition("clock"),), system="x", max_output_tokens=50, sampling=Sampling(top_p=0.5))
    said = counted(responses(asked))
    assert said.keys() == {"model", "input", "instructions", "tools"}
    adapter = TypeAdapter(with_config({"extra": "forbid"})(InputTokenCountParams))
    adapter.dump_python(adapter.validate_python(said))


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({}, "/v1/responses"),
        ({"stop": ("END",)}, "/v1/chat/completions"),
        ({"sampling": Sampling(seed=1)}, "/v1/chat/completions"),
        ({"sampling": Sampling(presence_penalty=1)}, "/v1/chat/completions"),
        ({"max_output_tokens": 5}, "/v1/chat/completions"),
        ({"max_output_tokens": 16}, "/v1/responses"),
        ({"messages": (Message(Role.USER, (Audio(Media("audio/wav", data=b"x")),)),)}, "/v1/chat/completions"),
        ({"options": {"prediction": None}}, "/v1/chat/completions"),
    ],
)
async def test_the_api_is_the_one_that_can_say_it(fields: dict[str, Any], path: str) -> None:
    options, messages = fields.pop("options", {}), fields.pop("messages", prompt().messages)
    async with serving(openai_wire.application) as wire:
        client = OpenAIClient(f"{wire.url}/v1", "key")
        usable: dict[str, Any] = {"issuer": "openai", "has_key": True, "needs_key": True}
        chat = OpenAIChat("upstream", client, OPENAI, **usable)
        provider = OpenAIAuto(OpenAIResponses("upstream", client, OPENAI, **usable), chat)
        ask = Ask(Prompt(messages, **fields), "fake", Unwatched(), 5, options)
        assert provider.dialect(ask) == ("openai_responses" if path.endswith("/responses") else "openai_chat")
        async with provider.stream(ask) as batches:
            assert [batch async for batch in batches]
        assert [exchange.request.path for exchange in wire.exchanges] == [path]
        await provider.close()


async def test_the_tokens_of_a_prompt_are_counted_by_the_provider() -> None:
    async with serving(openai_wire.application) as wire:
        client = OpenAIClient(f"{wire.url}/v1", "key")
        counter = OpenAIResponses("upstream", client, issuer="openai", has_key=True, needs_key=True)
        assert await counter.count_tokens(Ask(prompt(), "fake", Unwatched(), 5)) == 12
        (exchange,) = wire.exchanges
        assert exchange.request.path == "/v1/responses/input_tokens"
        assert exchange.request.json.keys() == {"model", "input"}
        with pytest.raises(ProviderFailure) as raised:
            await counter.count_tokens(Ask(prompt(), "fake;status=429;retry-after=7", Unwatched(), 5))
        assert (raised.value.error.code, raised.value.error.retry_after) == ("RESOURCE_EXHAUSTED", 7)
        with pytest.raises(ProviderFailure) as raised:
            await counter.count_tokens(Ask(prompt(), "fake;garbage=1", Unwatched(), 5))
        assert raised.value.error.reason == "PROVIDER_STREAM_BROKEN"
        await counter.close()
