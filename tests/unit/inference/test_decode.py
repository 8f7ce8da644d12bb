"""What a request is refused for before, or because of how, it is decoded."""

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from janus_api.content.v1 import message_pb2 as content
from janus_api.inference.v1 import inference_service_pb2, request_pb2
from janus_inference import decode
from janus_inference.decode import inputs_from, prompt_from
from janus_inference.model import Document, Media
from janus_inference.validation import validate
from janus_kit.errors import FieldViolation, InvalidArgument

TEXT = content.Part(text="x")


def user(parts: int = 1, **fields: Any) -> content.Message:
    return content.Message(role=content.ROLE_USER, parts=[TEXT] * parts, **fields)


def results(parts: list[content.Part]) -> content.Part:
    return content.Part(tool_result=content.ToolResult(call_id="a", parts=parts))


def with_parts(*parts: content.Part) -> request_pb2.Prompt:
    return request_pb2.Prompt(messages=[content.Message(role=content.ROLE_TOOL, parts=parts)])


def violations(prompt: request_pb2.Prompt) -> list[FieldViolation]:
    with pytest.raises(InvalidArgument) as raised:
        validate(prompt_from(prompt))
    return list(raised.value.violations)


TOO_MANY: list[tuple[str, str, request_pb2.Prompt]] = [
    ("prompt.messages", "1 to 10000", request_pb2.Prompt(messages=[content.Message()] * 500_000)),
    ("prompt.messages[1].parts", "1 to 1024", request_pb2.Prompt(messages=[user(), user(1025), user(1025)])),
    ("prompt.messages[0].parts[1].tool_result.parts", "0 to 64", with_parts(TEXT, results([TEXT] * 65))),
    (
        "prompt.messages[0].parts[0].tool_result.parts[0].tool_result.parts",
        "0 to 64",
        with_parts(results([results([TEXT] * 65)])),
    ),
    ("prompt.tools", "0 to 128", request_pb2.Prompt(tools=[request_pb2.ToolDefinition(name="t")] * 129)),
    ("prompt.stop", "0 to 16", request_pb2.Prompt(stop=["x"] * 17)),
    ("prompt.labels", "0 to 16", request_pb2.Prompt(labels={f"k{n}": "v" for n in range(17)})),
    (
        "prompt.routing.fallbacks",
        "0 to 8",
        request_pb2.Prompt(routing=request_pb2.Routing(fallbacks=["a/b"] * 9)),
    ),
]


@pytest.mark.parametrize(("field", "bounds", "asked"), TOO_MANY, ids=[row[0] for row in TOO_MANY])
def test_too_many_items_are_refused_before_any_is_decoded(
    field: str, bounds: str, asked: request_pb2.Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(_: object) -> None:
        pytest.fail("an item was decoded")

    monkeypatch.setattr(decode, "_message", reached)
    monkeypatch.setattr(decode, "_tool", reached)
    assert violations(asked) == [FieldViolation(field, f"must have {bounds} items")]


def test_too_many_parts_in_all_are_refused() -> None:
    asked = request_pb2.Prompt(messages=[user(256)] * 79)
    assert violations(asked) == [FieldViolation("prompt.messages", "must have at most 20000 parts in all")]


def test_as_many_items_as_are_allowed_are_decoded() -> None:
    asked = request_pb2.Prompt(messages=[user(256), *[user()] * 9_999], stop=["x"] * 16)
    validate(prompt_from(asked))


def test_too_many_texts_to_embed_are_refused_before_they_are_copied() -> None:
    request = inference_service_pb2.EmbedRequest(inputs=["x"] * 2049, labels={f"k{n}": "" for n in range(17)})
    with pytest.raises(InvalidArgument) as raised:
        inputs_from(request)
    assert [violation.field for violation in raised.value.violations] == ["inputs", "labels"]


@pytest.mark.parametrize(
    "duration",
    [Duration(seconds=1, nanos=-5), Duration(seconds=-1, nanos=5), Duration(seconds=1, nanos=1_000_000_000)],
    ids=["signs", "signs-reversed", "nanos"],
)
def test_what_is_no_duration_is_refused(duration: Duration) -> None:
    asked = request_pb2.Prompt(
        messages=[user()],
        timeouts=request_pb2.Timeouts(total=duration),
        routing=request_pb2.Routing(hedge_after=duration),
        cache=request_pb2.CachePolicy(max_age=duration),
        linger=duration,
    )
    found = {violation.field for violation in violations(asked)}
    assert found == {"prompt.timeouts.total", "prompt.routing.hedge_after", "prompt.cache.max_age", "prompt.linger"}


@pytest.mark.parametrize("role", [0, 99])
def test_a_role_is_a_value_of_the_enum(role: Any) -> None:
    asked = request_pb2.Prompt(messages=[content.Message(role=role, parts=[TEXT])])
    assert violations(asked) == [FieldViolation("prompt.messages[0].role", "must be set to a value of the enum")]


def test_a_document_is_decoded_with_what_is_asked_of_it() -> None:
    media = content.Media(mime_type="application/pdf", data=b"%PDF")
    document = content.Document(media=media, title="A report", citations=True)
    asked = request_pb2.Prompt(
        messages=[content.Message(role=content.ROLE_USER, parts=[content.Part(document=document)])]
    )
    (part,) = prompt_from(asked).messages[0].parts
    assert part == Document(Media("application/pdf", data=b"%PDF"), "A report", citations=True)
