"""Chat Completions requests as prompts, and how wrong ones are refused."""

import json
from typing import Any

import pytest

from janus_api.content.v1 import message_pb2 as content
from janus_api.inference.v1 import request_pb2 as pb
from janus_edge.openai_compat.errors import HttpError
from janus_edge.openai_compat.prompt import Translated, parse, translate

HELLO = [{"role": "user", "content": "hello"}]


def translated(**fields: Any) -> Translated:
    return translate(parse(json.dumps({"model": "fast", "messages": HELLO, **fields}).encode()))


def refused(body: bytes | None = None, **fields: Any) -> HttpError:
    if body is None:
        body = json.dumps({"model": "fast", "messages": HELLO, **fields}).encode()
    with pytest.raises(HttpError) as raised:
        translate(parse(body))
    assert raised.value.status == 400
    return raised.value


def test_every_supported_field_reaches_the_prompt():
    prompt = translated(
        max_completion_tokens=7,
        temperature=1,
        top_p=0.5,
        frequency_penalty=-1.5,
        presence_penalty=0.25,
        seed=-3,
        stop="END",
        n=1,
        parallel_tool_calls=False,
        reasoning_effort="high",
        metadata={"team": "a"},
        tools=[
            {
                "type": "function",
                "function": {
                    "name": "add",
                    "description": "adds",
                    "strict": True,
                    "parameters": {"type": "object", "properties": {"ä": {"type": "number"}}},
                },
            }
        ],
        tool_choice={"type": "function", "function": {"name": "add"}},
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "sum", "schema": {"type": "object"}, "strict": True},
        },
    ).prompt
    assert prompt == pb.Prompt(
        model="fast",
        messages=[content.Message(role=content.ROLE_USER, parts=[content.Part(text="hello")])],
        max_output_tokens=7,
        sampling=pb.Sampling(temperature=1, top_p=0.5, frequency_penalty=-1.5, presence_penalty=0.25, seed=-3),
        stop=["END"],
        parallel_tool_calls=False,
        reasoning=pb.ReasoningOptions(effort=pb.REASONING_EFFORT_HIGH),
        labels={"team": "a"},
        tools=[
            pb.ToolDefinition(
                name="add",
                description="adds",
                strict=True,
                parameters_schema_json='{"type":"object","properties":{"ä":{"type":"number"}}}',
            )
        ],
        tool_choice=pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_NAMED, name="add"),
        response_format=pb.ResponseFormat(
            json_schema=pb.JsonSchemaFormat(name="sum", schema_json='{"type":"object"}', strict=True)
        ),
    )


def test_every_role_and_kind_of_part_is_kept():
    messages = [
        {"role": "developer", "content": "be kind"},
        {
            "role": "user",
            "name": "ada",
            "content": [
                {"type": "text", "text": "look", "prompt_cache_breakpoint": {"mode": "explicit"}},
                {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "auto"}},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAEC"}},
                {"type": "input_audio", "input_audio": {"data": "AAEC", "format": "mp3"}},
                {
                    "type": "file",
                    "file": {"file_data": "data:application/pdf;base64,AAEC", "filename": "a.pdf"},
                },
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
                {"id": "c2", "type": "function", "function": {"name": "add", "arguments": ""}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "4"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    ]
    system, user, calls, results, refusal = translated(messages=messages).prompt.messages
    assert (system.role, system.parts[0].text) == (content.ROLE_SYSTEM, "be kind")
    assert user.name == "ada"
    assert user.parts[0].cache_breakpoint
    assert user.parts[1].image.uri == "https://example.org/a.png"
    assert (user.parts[2].image.mime_type, user.parts[2].image.data) == ("image/png", b"\0\1\2")
    assert (user.parts[3].audio.mime_type, user.parts[3].audio.data) == ("audio/mpeg", b"\0\1\2")
    assert user.parts[4].document.media.mime_type == "application/pdf"
    assert user.parts[4].document.title == "a.pdf"
    assert [part.tool_call.arguments_json for part in calls.parts] == ['{"a": 1}', "{}"]
    assert results.role == content.ROLE_TOOL
    assert [(part.tool_result.call_id, part.tool_result.parts[0].text) for part in results.parts] == [
        ("c1", "3"),
        ("c2", "4"),
    ]
    assert refusal.parts[0].refusal == "no"


def test_a_rule_of_the_mesh_is_reported_with_the_callers_own_field_names():
    tool = {"role": "tool", "content": "", "tool_call_id": "c"}
    request = translated(messages=[*HELLO, tool, tool, *HELLO], max_tokens=5)
    assert request.param_of("prompt.messages[2].parts[0].text") == "messages[3]"
    assert request.param_of("messages[0]") == "messages[0]"
    assert request.param_of("prompt.max_output_tokens") == "max_tokens"
    assert request.param_of("prompt.sampling.temperature") == "temperature"
    assert request.param_of("prompt.labels[team]") == "metadata"
    assert request.param_of("prompt.reasoning.effort") == "reasoning_effort"
    assert request.param_of("prompt.model") == "model"


@pytest.mark.parametrize(
    "field",
    [
        {"logprobs": True},
        {"top_logprobs": 2},
        {"logit_bias": {"5": 1}},
        {"functions": []},
        {"function_call": "auto"},
        {"audio": {"voice": "x", "format": "wav"}},
        {"modalities": ["text", "audio"]},
        {"prediction": {"type": "content", "content": "x"}},
        {"service_tier": "flex"},
        {"store": True},
        {"verbosity": "low"},
        {"web_search_options": {}},
    ],
    ids=lambda field: next(iter(field)),
)
def test_a_field_that_would_change_the_answer_is_refused_by_name(field: dict[str, Any]):
    error = refused(**field)
    assert (error.param, error.code) == (next(iter(field)), "unsupported_parameter")


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": False, "logit_bias": None, "modalities": ["text"], "store": False},
        {"service_tier": "auto", "user": "u", "safety_identifier": "s", "prompt_cache_key": "k"},
        {"temperature": None, "tools": None, "stop": None, "stream": False, "response_format": None},
    ],
)
def test_fields_that_ask_for_nothing_special_are_accepted(fields: dict[str, Any]):
    assert translated(**fields).prompt == translated().prompt


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"frequency": 1}, "frequency", "unknown_parameter"),
        ({"n": 2}, "n", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_value"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "invalid_value"),
        ({"max_tokens": 2**40}, "max_tokens", "invalid_value"),
        ({"seed": 2**70}, "seed", "invalid_value"),
        ({"reasoning_effort": "xhigh"}, "reasoning_effort", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"response_format": {"type": "xml"}}, "response_format", "invalid_value"),
        ({"tool_choice": "sometimes"}, "tool_choice", "invalid_value"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type", "invalid_value"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "messages[0]", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "assistant"}]}, "messages[0]", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
            "missing_required_parameter",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "mood": "good"}]},
            "messages[0].mood",
            "unknown_parameter",
        ),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str, code: str):
    error = refused(**fields)
    assert (error.param, error.code) == (param, code)
    assert param in error.message


@pytest.mark.parametrize(
    "url", ["data:image/png;base64,%%%", "data:image/png,abc", "data:;base64,AAEC", "data:image/png;base64,A"]
)
def test_a_data_url_that_is_none_is_refused(url: str):
    part = {"type": "image_url", "image_url": {"url": url}}
    error = refused(messages=[{"role": "user", "content": [part]}])
    assert error.param == "messages[0].content[0].image_url.url"


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff\xfe", b"[]", b"5", b'{"model": ', b'{"model": NaN}', b'{"model": "\\ud800"}', b'{"a":' * 9999],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes):
    assert refused(body).code == "invalid_json"


def test_a_refusal_never_repeats_the_callers_text():
    error = refused(messages=[{"role": "user", "content": {"secret": "hunter2"}}])
    assert "hunter2" not in error.message
