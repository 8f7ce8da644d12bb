"""Requests with too many pieces: refused by their counts, before anything is looked at."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from janus_api.content.v1 import message_pb2 as content
from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import recall_pb2, record_pb2, scope_pb2
from janus_kit.errors import FieldViolation, InvalidArgument
from janus_memory.wire import content as wire_content
from janus_memory.wire import reads, writes

TALK = scope_pb2.Scope(thread="t")
NOW = datetime(2024, 1, 1, tzinfo=UTC)


def refused(decode: Callable[[], Any]) -> list[FieldViolation]:
    with pytest.raises(InvalidArgument) as raised:
        decode()
    return list(raised.value.violations)


def append(*turns: record_pb2.Turn) -> pb.AppendMessagesRequest:
    return pb.AppendMessagesRequest(scope=TALK, turns=turns)


def said(parts: list[content.Part]) -> record_pb2.Turn:
    return record_pb2.Turn(message=content.Message(role=content.ROLE_USER, parts=parts))


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is decoded, checked or digested item by item."""

    def touched(*_: object) -> None:
        raise AssertionError("an item was looked at")

    for name in ("_turn", "_memory", "_digest", "check_message", "facts"):
        monkeypatch.setattr(writes, name, touched)
    monkeypatch.setattr(wire_content, "_check_part", touched)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (append(*[record_pb2.Turn()] * 500_000), "turns"),
        (append(said([content.Part()] * 500_000)), "turns[0].message.parts"),
        (
            append(said([content.Part(tool_result=content.ToolResult(parts=[content.Part()] * 500_000))])),
            "turns[0].message.parts[0].tool_result.parts",
        ),
        (append(*[said([content.Part()] * 256)] * 256), "turns"),
        (append(said([content.Part(text="x" * (4 * 1024 * 1024))])), "turns"),
    ],
    ids=["turns", "parts", "parts of a result", "parts in all", "bytes"],
)
def test_an_append_of_too_much_is_one_violation(request_: pb.AppendMessagesRequest, field: str) -> None:
    assert [each.field for each in refused(lambda: writes.append_command(request_))] == [field]


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("memories", "field"),
    [
        ([record_pb2.Memory()] * 500_000, "memories"),
        ([record_pb2.Memory(provenance=[record_pb2.Provenance()] * 500_000)], "memories[0].provenance"),
        ([record_pb2.Memory(embedding=[1.0] * 500_000)], "memories[0].embedding"),
        ([record_pb2.Memory(text="x" * (4 * 1024 * 1024))], "memories"),
    ],
    ids=["memories", "provenance", "embedding", "bytes"],
)
def test_a_remember_of_too_much_is_one_violation(memories: list[record_pb2.Memory], field: str) -> None:
    request = pb.RememberRequest(memories=memories)
    assert [each.field for each in refused(lambda: writes.remember_command(request))] == [field]


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"kinds": [0] * 500_000}, "kinds"), ({"query_embedding": [float("nan")] * 500_000}, "query_embedding")],
)
def test_a_recall_of_too_much_is_one_violation(fields: dict[str, Any], field: str) -> None:
    request = recall_pb2.RecallRequest(query="x", **fields)
    assert [each.field for each in refused(lambda: reads.recall_query(request, NOW))] == [field]


def test_a_request_at_its_limits_is_taken() -> None:
    quoted = record_pb2.Provenance(document="d", quote="é" * 2_048)
    memory = record_pb2.Memory(kind=record_pb2.MEMORY_KIND_FACT, text="x", provenance=[quoted])
    assert writes.remember_command(pb.RememberRequest(memories=[memory]))
    request = append(*[said([content.Part(text="x")] * 64)] * 256)
    assert len(writes.append_command(request).turns) == 256
