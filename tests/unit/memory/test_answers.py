"""Answers of recall: what of a turn is in a hit, and how large they become."""

from datetime import UTC, datetime

from janus_api.content.v1 import message_pb2 as content
from janus_memory.model import Hit, Recalled, Scope, Turn
from janus_memory.wire.answers import recalled_to, turn_to

WHEN = datetime(2024, 1, 1, tzinfo=UTC)
DATA = b"\xff" * 1000


def turn(*parts: content.Part) -> Turn:
    message = content.Message(role=content.ROLE_USER, parts=parts)
    return Turn(
        "m", Scope(thread="t"), "", "", message.SerializeToString(), 1, (), (), 1, 1, WHEN, WHEN, ""
    )  # fmt: skip


def answer(*turns: Turn) -> list[content.Message]:
    found = recalled_to(Recalled(tuple(Hit(each, 1.0) for each in turns), (), "m"), packed=False)
    return [hit.turn.message for hit in found.hits]


def test_a_hit_has_no_bytes_of_media_and_keeps_everything_else() -> None:
    image = content.Media(mime_type="image/png", data=DATA)
    away = content.Media(mime_type="image/png", uri="https://example.org/a.png")
    document = content.Document(title="A", media=content.Media(mime_type="application/pdf", data=DATA))
    said = turn(
        content.Part(text="look"),
        content.Part(image=image),
        content.Part(image=away),
        content.Part(audio=content.Media(mime_type="audio/wav", data=DATA)),
        content.Part(document=document),
        content.Part(tool_result=content.ToolResult(call_id="c", parts=[content.Part(image=image)])),
        content.Part(opaque=content.OpaquePart(issuer="openai", type="x", data=DATA)),
        content.Part(reasoning=content.Reasoning(text="hm", signature=DATA, issuer="anthropic")),
        content.Part(reasoning=content.Reasoning(redacted=DATA, issuer="anthropic")),
        content.Part(citation=content.Citation(title="A", issuer="anthropic", data=DATA)),
    )
    [message] = answer(said)
    bare = content.Media(mime_type="image/png")
    assert list(message.parts) == [
        content.Part(text="look"),
        content.Part(image=bare),
        content.Part(image=away),
        content.Part(audio=content.Media(mime_type="audio/wav")),
        content.Part(document=content.Document(title="A", media=content.Media(mime_type="application/pdf"))),
        content.Part(tool_result=content.ToolResult(call_id="c", parts=[content.Part(image=bare)])),
        content.Part(opaque=content.OpaquePart(issuer="openai", type="x")),
        content.Part(reasoning=content.Reasoning(text="hm", issuer="anthropic")),
        content.Part(reasoning=content.Reasoning(issuer="anthropic")),
        content.Part(citation=content.Citation(title="A", issuer="anthropic")),
    ]
    assert turn_to(said).message.parts[1].image == image


def test_the_best_hits_that_fit_are_there() -> None:
    large = turn(content.Part(text="x" * 1024 * 1024))
    assert len(answer(*[large] * 5)) == 2
    small = turn(content.Part(text="x"))
    assert len(answer(*[small] * 200)) == 200


def test_the_best_hit_is_there_however_large() -> None:
    largest = turn(*[content.Part(text="x" * 1024 * 1024)] * 4)
    assert len(answer(largest, turn(content.Part(text="x")))) == 1
