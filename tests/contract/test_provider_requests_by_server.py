"""What differs between servers and models in the requests that prompts become."""

import re
from dataclasses import replace
from typing import Any

import pytest
from tests.fakes.providers.prompts import prompt
from tests.fakes.providers.typed_requests import SCHEMA, chat, messages, refused_fields

from janus_inference.adapters.openai_auto import needs_chat_completions
from janus_inference.dialects.openai_chat_request import chat_body
from janus_inference.dialects.openai_responses_request import responses_body
from janus_inference.model import (
    Audio,
    Document,
    Effort,
    JsonSchemaFormat,
    Media,
    Message,
    Prompt,
    Reasoning,
    ReasoningOptions,
    Role,
    Sampling,
    Text,
    ToolCall,
    ToolDefinition,
    ToolResult,
)
from janus_inference.profiles import OPENAI, PROFILES
from janus_kit.errors import InvalidArgument

PDF = Media("application/pdf", data=b"%PDF")


def user(*parts: Any) -> Prompt:
    return Prompt((Message(Role.USER, (Text("x"), *parts)),))


def test_documents() -> None:
    asked = user(
        Document(PDF, title="Report"),
        Document(Media("text/markdown; charset=utf-8", data="# Grüezi".encode()), title="Notes"),
    )
    assert chat(asked)["messages"][0]["content"][1:] == [
        {"type": "file", "file": {"filename": "Report.pdf", "file_data": "data:application/pdf;base64,JVBERg=="}},
        {"type": "text", "text": "Document “Notes”:\n# Grüezi"},
    ]
    assert messages(asked)["messages"][0]["content"][1:] == [
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="},
            "title": "Report",
        },
        {
            "type": "document",
            "source": {"type": "text", "media_type": "text/plain", "data": "# Grüezi"},
            "title": "Notes",
        },
    ]


def test_a_document_at_an_address_goes_to_those_that_fetch_it() -> None:
    asked = user(Document(Media("", uri="https://example.org/a.pdf")))
    source = messages(asked)["messages"][0]["content"][1]["source"]
    assert source == {"type": "url", "url": "https://example.org/a.pdf"}
    file = chat(asked, PROFILES["openrouter"])["messages"][0]["content"][1]["file"]
    assert file == {"filename": "document", "file_data": "https://example.org/a.pdf"}
    with pytest.raises(InvalidArgument) as raised:
        chat(asked)
    assert refused_fields(raised.value) == ["prompt.messages[0].parts[1].document"]


@pytest.mark.parametrize(("mime", "form"), [("audio/wav", "wav"), ("audio/mpeg", "mp3"), ("audio/mp3; rate=1", "mp3")])
def test_sound(mime: str, form: str) -> None:
    block = chat(user(Audio(Media(mime, data=b"RIFF"))))["messages"][0]["content"][1]
    assert block == {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": form}}


WORD_FILE = Document(Media("application/msword", data=b"x"))
SOUND = Audio(Media("audio/wav", data=b"RIFF"))
SOUND_PATH, DOCUMENT_PATH = "prompt.messages[0].parts[1].audio", "prompt.messages[0].parts[1].document"


@pytest.mark.parametrize(
    ("server", "part", "path"),
    [
        ("openai", Audio(Media("audio/ogg", data=b"x")), SOUND_PATH),
        ("openai", Audio(Media("audio/wav", uri="https://example.org/a.wav")), SOUND_PATH),
        ("groq", SOUND, SOUND_PATH),
        ("vllm", Document(PDF), DOCUMENT_PATH),
        ("anthropic", SOUND, SOUND_PATH),
        ("anthropic", WORD_FILE, DOCUMENT_PATH),
    ],
)
def test_media_that_a_server_does_not_take_are_refused_by_path(server: str, part: Any, path: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        messages(user(part)) if server == "anthropic" else chat(user(part), PROFILES[server])
    assert refused_fields(raised.value) == [path]


def test_log_probabilities() -> None:
    asked = prompt(sampling=Sampling(top_logprobs=3))
    body = chat(asked)
    assert (body["logprobs"], body["top_logprobs"]) == (True, 3)
    for build in (lambda: messages(asked), lambda: chat(asked, PROFILES["groq"])):
        with pytest.raises(InvalidArgument) as raised:
            build()
        assert refused_fields(raised.value) == ["prompt.sampling.top_logprobs"]


@pytest.mark.parametrize(
    ("server", "options", "said"),
    [
        ("openai", ReasoningOptions(Effort.LOW), {"reasoning_effort": "low"}),
        ("openrouter", ReasoningOptions(Effort.LOW), {"reasoning": {"effort": "low"}}),
        ("openrouter", ReasoningOptions(budget_tokens=2000), {"reasoning": {"max_tokens": 2000}}),
        ("openrouter", ReasoningOptions(budget_tokens=0), {"reasoning": {"enabled": False}}),
        ("zai", ReasoningOptions(Effort.HIGH), {"thinking": {"type": "enabled"}}),
        ("deepseek", ReasoningOptions(Effort.NONE), {"thinking": {"type": "disabled"}}),
        ("vllm", ReasoningOptions(Effort.HIGH), {"reasoning_effort": "high"}),
        ("vllm", ReasoningOptions(Effort.NONE), {"chat_template_kwargs": {"enable_thinking": False}}),
        ("llama.cpp", ReasoningOptions(Effort.LOW), {"chat_template_kwargs": {"reasoning_effort": "low"}}),
        ("ollama", ReasoningOptions(budget_tokens=0), {"reasoning_effort": "none"}),
        ("openrouter", ReasoningOptions(summary=True), {}),
    ],
)
def test_every_server_is_told_in_its_own_way_how_much_to_think(
    server: str, options: ReasoningOptions, said: dict[str, Any]
) -> None:
    plain = chat_body(prompt(), "m", PROFILES[server], "x")
    body = chat_body(prompt(reasoning=options), "m", PROFILES[server], "x")
    assert {name: value for name, value in body.items() if name not in plain} == said


@pytest.mark.parametrize(
    ("model", "effort", "word"),
    [
        ("gpt-5", Effort.MINIMAL, "minimal"),
        ("gpt-5.1", Effort.MINIMAL, "low"),
        ("gpt-5.1", Effort.NONE, "none"),
        ("o3-mini", Effort.HIGH, "high"),
        ("gpt-4o", Effort.NONE, None),
        ("gpt-9-unheard-of", Effort.MINIMAL, "minimal"),
    ],
)
def test_an_effort_is_said_in_the_model_s_words(model: str, effort: Effort, word: str | None) -> None:
    body = chat_body(prompt(reasoning=ReasoningOptions(effort)), model, OPENAI, "openai")
    assert body.get("reasoning_effort") == word


@pytest.mark.parametrize(
    ("model", "effort"), [("gpt-5", Effort.NONE), ("gpt-4o", Effort.LOW), ("gpt-5-pro", Effort.LOW)]
)
def test_an_effort_that_a_model_does_not_have_is_refused(model: str, effort: Effort) -> None:
    with pytest.raises(InvalidArgument) as raised:
        chat_body(prompt(reasoning=ReasoningOptions(effort)), model, OPENAI, "openai")
    assert refused_fields(raised.value) == ["prompt.reasoning.effort"]


@pytest.mark.parametrize("options", [ReasoningOptions(summary=True), ReasoningOptions(Effort.HIGH, summary=True)])
@pytest.mark.parametrize("fields", [{"stop": ("x",)}, {"sampling": Sampling(seed=5)}])
@pytest.mark.parametrize("model", ["gpt-5", "gpt-9-unheard-of"])
def test_a_summary_that_openai_shows_in_its_other_api_alone_is_refused(
    model: str, fields: dict[str, Any], options: ReasoningOptions
) -> None:
    asked = prompt(reasoning=options, **fields)
    assert needs_chat_completions(asked)
    with pytest.raises(InvalidArgument) as raised:
        chat_body(asked, model, OPENAI, "openai")
    assert refused_fields(raised.value) == ["prompt.reasoning.summary"]


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("gpt-4o", ReasoningOptions(summary=True)),
        ("gpt-5.2", ReasoningOptions(Effort.NONE, summary=True)),
        ("gpt-5.2", ReasoningOptions(budget_tokens=0, summary=True)),
    ],
)
def test_where_nothing_is_thought_there_is_nothing_to_sum_up(model: str, options: ReasoningOptions) -> None:
    quiet = replace(options, summary=False)
    assert chat_body(prompt(reasoning=options), model, OPENAI, "openai") == chat_body(
        prompt(reasoning=quiet), model, OPENAI, "openai"
    )


ADAPTIVE = {"type": "adaptive"}
SHOWN = {"type": "adaptive", "display": "summarized"}


@pytest.mark.parametrize(
    ("model", "options", "thinking", "effort"),
    [
        ("claude-sonnet-4-5", ReasoningOptions(Effort.LOW), {"type": "enabled", "budget_tokens": 2048}, None),
        ("claude-sonnet-4-6", ReasoningOptions(Effort.MINIMAL), ADAPTIVE, "low"),
        ("claude-opus-4-6", ReasoningOptions(budget_tokens=5000), {"type": "enabled", "budget_tokens": 5000}, None),
        ("claude-opus-5", ReasoningOptions(Effort.HIGH, summary=True), SHOWN, "high"),
        ("claude-opus-5", ReasoningOptions(summary=True), SHOWN, None),
        ("claude-opus-5", ReasoningOptions(Effort.NONE), {"type": "disabled"}, None),
        ("claude-opus-7-2", ReasoningOptions(Effort.MEDIUM), ADAPTIVE, "medium"),
        ("claude-sonnet-4-5", ReasoningOptions(summary=True), None, None),
        ("claude-3-5-haiku-latest", ReasoningOptions(Effort.NONE), {"type": "disabled"}, None),
    ],
)
def test_claude_thinks_by_budget_or_by_effort(
    model: str, options: ReasoningOptions, thinking: Any, effort: str | None
) -> None:
    body = messages(prompt(reasoning=options), model)
    assert body.get("thinking") == thinking
    assert body.get("output_config", {}).get("effort") == effort


@pytest.mark.parametrize(
    ("model", "fields", "refused"),
    [
        ("claude-opus-5", {"reasoning": ReasoningOptions(budget_tokens=5000)}, "prompt.reasoning.budget_tokens"),
        ("claude-fable-5", {"reasoning": ReasoningOptions(Effort.NONE)}, "prompt.reasoning.effort"),
        ("claude-fable-5", {"reasoning": ReasoningOptions(budget_tokens=0)}, "prompt.reasoning.budget_tokens"),
        ("claude-3-5-haiku-latest", {"reasoning": ReasoningOptions(Effort.LOW)}, "prompt.reasoning.effort"),
        ("claude-sonnet-4-5", {"reasoning": ReasoningOptions(budget_tokens=100)}, "prompt.reasoning.budget_tokens"),
        ("claude-opus-5", {"sampling": Sampling(top_p=0.5)}, "prompt.sampling.top_p"),
        (
            "claude-sonnet-4-0",
            {"response_format": JsonSchemaFormat("city", SCHEMA, strict=True)},
            "prompt.response_format.json_schema.strict",
        ),
        (
            "claude-3-5-haiku-latest",
            {"tools": (ToolDefinition("clock"), ToolDefinition("weather", "", SCHEMA, strict=True))},
            "prompt.tools[1].strict",
        ),
    ],
)
def test_what_a_claude_cannot_do_is_refused(model: str, fields: dict[str, Any], refused: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        messages(prompt(**fields), model)
    assert refused_fields(raised.value) == [refused]


@pytest.mark.parametrize("server", ["deepseek", "zai"])
def test_a_server_that_holds_to_no_schema_is_asked_to_or_refuses(server: str) -> None:
    wanted = JsonSchemaFormat("city", SCHEMA, "A city")
    body = chat(prompt(response_format=wanted), PROFILES[server])
    assert body["response_format"] == {"type": "json_object"}
    assert body["messages"][0]["role"] == "system"
    assert SCHEMA in body["messages"][0]["content"]
    strict = {
        "prompt.response_format.json_schema.strict": {"response_format": replace(wanted, strict=True)},
        "prompt.tools[0].strict": {"tools": (ToolDefinition("weather", "", SCHEMA, strict=True),)},
    }
    for field, fields in strict.items():
        with pytest.raises(InvalidArgument) as raised:
            chat(prompt(**fields), PROFILES[server])
        assert refused_fields(raised.value) == [field]


def test_claude_is_asked_for_a_schema_that_it_need_not_hold_to() -> None:
    body = messages(prompt(response_format=JsonSchemaFormat("city", SCHEMA)))
    assert "output_config" not in body
    assert SCHEMA in body["system"]


def test_breakpoints_go_to_those_that_take_them_and_at_most_four() -> None:
    turns = tuple(Message(Role.USER, (Text(f"turn {number}", cache_breakpoint=True),)) for number in range(6))
    asked = Prompt((Message(Role.SYSTEM, (Text("rules", cache_breakpoint=True),)), *turns))
    marked = ["cache_control" in block for message in messages(asked)["messages"] for block in message["content"]]
    assert marked == [False, False, True, True, True, True]
    routed = chat_body(asked, "anthropic/claude-sonnet-4.6", PROFILES["openrouter"], "x")["messages"]
    assert [isinstance(message["content"], list) for message in routed] == [False, False, False, *[True] * 4]
    assert routed[-1]["content"][0]["cache_control"] == {"type": "ephemeral"}
    for model, server in (("gpt-5", "openrouter"), ("claude-x", "vllm")):
        plain = chat_body(asked, model, PROFILES[server], "x")["messages"]
        assert all(isinstance(message["content"], str) for message in plain)


def test_a_breakpoint_stands_only_where_it_may() -> None:
    said = (
        Text("before"),
        Reasoning("hm", signature=b"c2ln", issuer="anthropic", cache_breakpoint=True),
        Text("after"),
        Text("", cache_breakpoint=True),
    )
    blocks = messages(Prompt((Message(Role.ASSISTANT, said),)))["messages"][0]["content"]
    assert ["cache_control" in block for block in blocks] == [False, False, True]


def test_a_server_s_own_names_of_fields() -> None:
    asked = prompt(sampling=Sampling(seed=7), max_output_tokens=9)
    body = chat_body(asked, "mistral-small", PROFILES["mistral"], "mistral")
    assert (body["random_seed"], body["max_tokens"], "stream_options" in body) == (7, 9, False)


@pytest.mark.parametrize(
    ("call_id", "server", "kept"),
    [
        ("call_1", "openai", True),
        ("c" * 41, "openai", False),
        ("call_1", "mistral", False),
        ("D681PevKs", "mistral", True),
        ("functions.weather:0", "vllm", True),
        ("toolu_1", "anthropic", True),
        ("functions.weather:0", "anthropic", False),
    ],
)
def test_ids_of_another_provider_s_calls_take_the_form_that_this_one_wants(
    call_id: str, server: str, kept: bool
) -> None:
    turn = Message(Role.ASSISTANT, (ToolCall(call_id, "weather", "{}"),))
    asked = Prompt((turn, Message(Role.TOOL, (ToolResult(call_id, (Text("sunny"),)),))))
    if server == "anthropic":
        said = messages(asked)["messages"]
        called, answered = said[0]["content"][0]["id"], said[1]["content"][0]["tool_use_id"]
        form = r"[A-Za-z0-9_-]{1,64}"
    else:
        said = chat(asked, PROFILES[server])["messages"]
        called, answered = said[0]["tool_calls"][0]["id"], said[1]["tool_call_id"]
        form = r"[A-Za-z0-9]{9}" if server == "mistral" else r".{1,40}"
    assert called == answered
    assert re.fullmatch(form, called)
    assert (called == call_id) is kept


@pytest.mark.parametrize("media", [PDF, Media("text/plain", data=b"words")])
def test_a_document_that_is_to_be_cited_says_so_to_the_provider_that_cites(media: Media) -> None:
    said = messages(user(Document(media, "A report", citations=True)))["messages"][0]["content"][1]
    assert said["citations"] == {"enabled": True}
    assert "citations" not in messages(user(Document(media)))["messages"][0]["content"][1]


@pytest.mark.parametrize("media", [PDF, Media("text/plain", data=b"words")])
def test_a_document_that_is_to_be_cited_is_refused_where_none_is(media: Media) -> None:
    cited = Document(media, citations=True)
    asked, result = user(cited), Prompt((Message(Role.TOOL, (ToolResult("a", (Text("x"), cited)),)),))
    found = []
    for each in (asked, result):
        for write in (chat_body, responses_body):
            with pytest.raises(InvalidArgument) as raised:
                write(each, "gpt", OPENAI, "openai")
            found += refused_fields(raised.value)
    inside = "prompt.messages[0].parts[0].tool_result.parts[1].document"
    outside = ["prompt.messages[0].parts[1].document.citations"] * 2
    # Chat's tools cannot answer with a PDF in any case.
    chats = f"{inside}.citations" if media is not PDF else inside
    assert found == [*outside, chats, f"{inside}.citations"]
