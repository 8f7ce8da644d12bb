"""Bad input to memory: refused, naming the field, and nothing is stored."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from tests.fakes.memory_requests import DIMENSIONS, METHODS, Names, sealed, values_of
from tests.fakes.memory_service import Caller, Memory, refused, running, said, texts
from tests.fakes.requests import Leaf, leaves, requests

from janus_api.content.v1 import message_pb2 as content
from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import recall_pb2, record_pb2, scope_pb2, space_pb2
from janus_kit.channel import connect
from janus_kit.errors import InvalidArgument, JanusError
from janus_kit.rpc_errors import from_rpc, from_status

NAN = float("nan")
FACT = record_pb2.MEMORY_KIND_FACT


def append(**turn: Any) -> pb.AppendMessagesRequest:
    message = turn.pop("message", content.Message(role=content.ROLE_USER, parts=[content.Part(text="x")]))
    return pb.AppendMessagesRequest(
        scope=scope_pb2.Scope(thread="talk"), turns=[record_pb2.Turn(message=message, **turn)]
    )


def message(*parts: content.Part, **fields: Any) -> content.Message:
    return content.Message(**{"role": content.ROLE_USER, "parts": parts, **fields})


def part(**kind: Any) -> pb.AppendMessagesRequest:
    return append(message=message(content.Part(**kind)))


def remember(**memory: Any) -> pb.RememberRequest:
    return pb.RememberRequest(memories=[record_pb2.Memory(**{"kind": FACT, "text": "x", **memory})])


def quoted(words: str) -> record_pb2.Provenance:
    return record_pb2.Provenance(document="d", quote=words)


def timestamp(seconds: int, nanos: int = 0) -> dict[str, int]:
    return {"seconds": seconds, "nanos": nanos}


def update(*paths: str, **memory: Any) -> pb.UpdateMemoryRequest:
    return pb.UpdateMemoryRequest(memory=record_pb2.Memory(**{"id": "m", **memory}), update_mask=FieldMask(paths=paths))


def put_block(expected_version: int = 0, **block: Any) -> pb.PutBlockRequest:
    return pb.PutBlockRequest(block=record_pb2.Block(**{"name": "a", **block}), expected_version=expected_version)


def kept_for(seconds: int, nanos: int = 0) -> pb.PutSpaceRequest:
    return pb.PutSpaceRequest(space=space_pb2.Space(name="s", retention=Duration(seconds=seconds, nanos=nanos)))


SAID = content.Part(text="x")
CASES: list[tuple[str, Any, str]] = [
    ("AppendMessages", pb.AppendMessagesRequest(), "scope.thread"),
    ("AppendMessages", pb.AppendMessagesRequest(scope=scope_pb2.Scope(thread="t")), "turns"),
    ("AppendMessages", append(message=content.Message()), "turns[0].message.role"),
    ("AppendMessages", append(message=message()), "turns[0].message.parts"),
    ("AppendMessages", append(message=message(content.Part())), "turns[0].message.parts[0]"),
    (
        "AppendMessages",
        append(message=content.Message(role=content.ROLE_TOOL, parts=[content.Part(text="sunny")])),
        "turns[0].message.parts[0]",
    ),
    ("AppendMessages", append(message=message(SAID, role=99)), "turns[0].message.role"),
    ("AppendMessages", append(message=message(SAID, id="a b")), "turns[0].message.id"),
    ("AppendMessages", append(message=message(SAID, id="x" * 1_000_000)), "turns[0].message.id"),
    ("AppendMessages", append(message=message(SAID, name="\x00")), "turns[0].message.name"),
    ("AppendMessages", part(text="a\x00b"), "turns[0].message.parts[0].text"),
    ("AppendMessages", part(text="x" * (1024 * 1024 + 1)), "turns[0].message.parts[0].text"),
    ("AppendMessages", part(tool_call=content.ToolCall(name="t")), "turns[0].message.parts[0].tool_call.call_id"),
    (
        "AppendMessages",
        part(tool_call=content.ToolCall(call_id="c", name="a b")),
        "turns[0].message.parts[0].tool_call.name",
    ),
    (
        "AppendMessages",
        part(tool_result=content.ToolResult(call_id="c", parts=[content.Part(refusal="no")])),
        "turns[0].message.parts[0].tool_result.parts[0]",
    ),
    (
        "AppendMessages",
        part(image=content.Media(mime_type="image/png", uri="http://x")),
        "turns[0].message.parts[0].image.uri",
    ),
    ("AppendMessages", part(image=content.Media(data=b"x")), "turns[0].message.parts[0].image.mime_type"),
    ("AppendMessages", append(scope=scope_pb2.Scope(subject="s")), "turns[0].scope"),
    ("AppendMessages", append(metadata_json="[1]"), "turns[0].metadata_json"),
    ("AppendMessages", append(metadata_json="{"), "turns[0].metadata_json"),
    ("AppendMessages", append(metadata_json='{"a": NaN}'), "turns[0].metadata_json"),
    ("AppendMessages", append(metadata_json='{"a": 1e999}'), "turns[0].metadata_json"),
    ("AppendMessages", append(metadata_json='{"a": 1e-16384}'), "turns[0].metadata_json"),
    ("AppendMessages", append(metadata_json='{"a": 0.0e-99999999999999999999}'), "turns[0].metadata_json"),
    ("AppendMessages", append(metadata_json='{"a": "\\u0000"}'), "turns[0].metadata_json"),
    ("AppendMessages", append(metadata_json='{"a": "\\ud800"}'), "turns[0].metadata_json"),
    ("AppendMessages", append(metadata_json='{"a":' * 9 + "1" + "}" * 9), "turns[0].metadata_json"),
    ("AppendMessages", append(metadata_json="[" * 10_000), "turns[0].metadata_json"),
    ("AppendMessages", append(metadata_json='{"a": "' + "x" * 16_384 + '"}'), "turns[0].metadata_json"),
    ("AppendMessages", append(metadata_json='{"a": %s}' % ("9" * 5_000)), "turns[0].metadata_json"),
    ("AppendMessages", append(occurred_at=timestamp(0, 2_000_000_000)), "turns[0].occurred_at"),
    ("AppendMessages", append(occurred_at=timestamp(10**15)), "turns[0].occurred_at"),
    ("GetWindow", pb.GetWindowRequest(), "scope.thread"),
    ("GetWindow", pb.GetWindowRequest(scope=scope_pb2.Scope(thread="t"), max_tokens=-1), "max_tokens"),
    ("GetWindow", pb.GetWindowRequest(scope=scope_pb2.Scope(thread="t"), max_messages=1_001), "max_messages"),
    ("Remember", pb.RememberRequest(), "memories"),
    ("Remember", remember(kind=0), "memories[0].kind"),
    ("Remember", remember(kind=77), "memories[0].kind"),
    ("Remember", remember(text=""), "memories[0].text"),
    ("Remember", remember(text=" \n"), "memories[0].text"),
    ("Remember", remember(text="a\x00"), "memories[0].text"),
    ("Remember", remember(text="ä" * 131_073), "memories[0].text"),
    ("Remember", remember(id="?"), "memories[0].id"),
    ("Remember", remember(importance=NAN), "memories[0].importance"),
    ("Remember", remember(importance=1.1), "memories[0].importance"),
    ("Remember", remember(embedding=[NAN] * 384), "memories[0].embedding"),
    ("Remember", remember(embedding=[1.0] * 5_000), "memories[0].embedding"),
    ("Remember", remember(embedding=[0.0] * 384), "memories[0].embedding"),
    ("Remember", remember(embedding=[1e-12] * 384), "memories[0].embedding"),
    ("Remember", remember(embedding=[1e18] * 384), "memories[0].embedding"),
    ("Remember", remember(embedding=[3.4e38] * 384), "memories[0].embedding"),
    ("Remember", remember(embedding=[1.0, 2.0]), "memories[0].embedding"),
    ("Remember", remember(provenance=[record_pb2.Provenance()]), "memories[0].provenance[0]"),
    ("Remember", remember(provenance=[quoted("é" * 2_049)]), "memories[0].provenance[0].quote"),
    ("Remember", remember(provenance=[quoted("a\x00")]), "memories[0].provenance[0].quote"),
    ("Remember", remember(valid_from=timestamp(5), valid_to=timestamp(5)), "memories[0].valid_to"),
    ("Remember", remember(scope=scope_pb2.Scope(subject="a\x00")), "memories[0].scope.subject"),
    ("Recall", recall_pb2.RecallRequest(), "query"),
    ("Recall", recall_pb2.RecallRequest(query="x" * 8_193), "query"),
    ("Recall", recall_pb2.RecallRequest(query="\x00"), "query"),
    ("Recall", recall_pb2.RecallRequest(query="x", limit=201), "limit"),
    ("Recall", recall_pb2.RecallRequest(query="x", limit=-1), "limit"),
    ("Recall", recall_pb2.RecallRequest(query="x", kinds=[0]), "kinds[0]"),
    ("Recall", recall_pb2.RecallRequest(query="x", kinds=[55]), "kinds[0]"),
    ("Recall", recall_pb2.RecallRequest(query="x", query_embedding=[float("inf")]), "query_embedding"),
    ("Recall", recall_pb2.RecallRequest(query="x", query_embedding=[0.0] * 384), "query_embedding"),
    ("Recall", recall_pb2.RecallRequest(query="x", query_embedding=[1e18] * 384), "query_embedding"),
    ("Recall", recall_pb2.RecallRequest(query="x", consistency_token="nonsense"), "consistency_token"),
    (
        "Recall",
        recall_pb2.RecallRequest(query="x", weights=recall_pb2.RecallWeights(speaker=NAN)),
        "weights.speaker",
    ),
    ("Recall", recall_pb2.RecallRequest(query="x", scope=scope_pb2.Scope(space="a/b")), "scope.space"),
    ("PutSpace", pb.PutSpaceRequest(), "space"),
    ("PutSpace", pb.PutSpaceRequest(space=space_pb2.Space(name="a b")), "space.name"),
    ("PutSpace", pb.PutSpaceRequest(space=space_pb2.Space(name="a", backend=9)), "space.backend"),
    ("PutSpace", pb.PutSpaceRequest(space=space_pb2.Space(name="a", dimensions=4_097)), "space.dimensions"),
    ("PutSpace", kept_for(0), "space.retention"),
    ("PutSpace", kept_for(-1), "space.retention"),
    ("PutSpace", kept_for(0, -1), "space.retention"),
    ("PutSpace", kept_for(1, -1), "space.retention"),
    ("PutSpace", kept_for(1, 1_000_000_000), "space.retention"),
    ("PutSpace", kept_for(2**62), "space.retention"),
    ("GetSpace", pb.GetSpaceRequest(name="a b"), "name"),
    ("GetMemory", pb.GetMemoryRequest(), "memory_id"),
    ("GetMemory", pb.GetMemoryRequest(memory_id="' OR 1=1"), "memory_id"),
    ("ListMemories", pb.ListMemoriesRequest(scope=scope_pb2.Scope(space="a/b")), "scope.space"),
    ("ListMemories", pb.ListMemoriesRequest(kinds=[0]), "kinds[0]"),
    ("ListMemories", pb.ListMemoriesRequest(kinds=[6]), "kinds[0]"),
    ("ListMemories", pb.ListMemoriesRequest(kinds=[1] * 65), "kinds"),
    ("ListMemories", pb.ListMemoriesRequest(page_size=1_001), "page_size"),
    ("ListMemories", pb.ListMemoriesRequest(page_token="AAAA"), "page_token"),
    ("UpdateMemory", pb.UpdateMemoryRequest(), "memory"),
    ("UpdateMemory", update(), "update_mask.paths"),
    ("UpdateMemory", update("id"), "update_mask.paths[0]"),
    ("UpdateMemory", update("text", "memory.text"), "update_mask.paths[1]"),
    ("UpdateMemory", update("text"), "memory.text"),
    ("UpdateMemory", update("text", text="a\x00"), "memory.text"),
    ("UpdateMemory", update("text", text="ä" * 131_073), "memory.text"),
    ("UpdateMemory", update("importance", importance=NAN), "memory.importance"),
    ("UpdateMemory", update("metadata_json", metadata_json="[1]"), "memory.metadata_json"),
    ("UpdateMemory", update("predicate", predicate="x" * 129), "memory.predicate"),
    ("UpdateMemory", update("expires_at", expires_at=timestamp(10**15)), "memory.expires_at"),
    (
        "UpdateMemory",
        update("valid_to", "valid_from", valid_from=timestamp(5), valid_to=timestamp(5)),
        "memory.valid_to",
    ),
    ("UpdateMemory", update("predicate", id="?"), "memory.id"),
    ("ForgetMemory", pb.ForgetMemoryRequest(), "memory_id"),
    ("ForgetMemory", pb.ForgetMemoryRequest(memory_id="m", reason="x" * 1_025), "reason"),
    ("ForgetMemory", pb.ForgetMemoryRequest(memory_id="m", reason="\x00"), "reason"),
    ("ForgetMemory", pb.ForgetMemoryRequest(memory_id="m", request_id="a b"), "request_id"),
    ("GetHistory", pb.GetHistoryRequest(memory_id="x" * 129), "memory_id"),
    ("GetHistory", pb.GetHistoryRequest(memory_id="m", page_size=-1), "page_size"),
    ("GetHistory", pb.GetHistoryRequest(memory_id="m", page_token="AAAA"), "page_token"),
    ("PutBlock", pb.PutBlockRequest(), "block"),
    ("PutBlock", put_block(name="A"), "block.name"),
    ("PutBlock", put_block(name="x" * 65), "block.name"),
    ("PutBlock", put_block(text="\x00"), "block.text"),
    ("PutBlock", put_block(text="x" * 4_097), "block.text"),
    ("PutBlock", put_block(size_limit=65_537), "block.size_limit"),
    ("PutBlock", put_block(size_limit=-1), "block.size_limit"),
    ("PutBlock", put_block(description="x" * 1_025), "block.description"),
    ("PutBlock", put_block(scope=scope_pb2.Scope(thread="t")), "block.scope.thread"),
    ("PutBlock", put_block(expected_version=-1), "expected_version"),
    ("GetBlock", pb.GetBlockRequest(), "name"),
    ("GetBlock", pb.GetBlockRequest(scope=scope_pb2.Scope(thread="t"), name="a"), "scope.thread"),
    ("ListBlocks", pb.ListBlocksRequest(scope=scope_pb2.Scope(thread="t")), "scope.thread"),
    ("ListBlocks", pb.ListBlocksRequest(page_token="AAAA"), "page_token"),
    ("ListSpaces", pb.ListSpacesRequest(page_size=-1), "page_size"),
    ("ListSpaces", pb.ListSpacesRequest(page_token="AAAA"), "page_token"),
]


@pytest.mark.parametrize(
    ("method", "request_", "field"), CASES, ids=[f"{c[0]}-{c[2]}-{i}" for i, c in enumerate(CASES)]
)
async def test_a_bad_field_is_named(memory: Memory, method: str, request_: Any, field: str) -> None:
    ann = memory.caller()
    # The default space is made first: some rules are the space's.
    await ann.append("other", "x")
    error = await refused(ann.call(method, request_))
    assert isinstance(error, InvalidArgument), error
    assert field in {violation.field for violation in error.violations}
    assert "Error" not in error.message


async def test_a_wrong_dimension_says_which_is_right(memory: Memory) -> None:
    ann = memory.caller()
    good = record_pb2.Memory(kind=FACT, text="x")
    bad = record_pb2.Memory(kind=FACT, text="y", embedding=[1.0, 2.0])
    error = await refused(ann.remember(good, good, good, bad))
    assert isinstance(error, InvalidArgument)
    assert error.reason == "DIMENSION_MISMATCH"
    assert error.metadata == {"expected": "384", "actual": "2"}
    assert [violation.field for violation in error.violations] == ["memories[3].embedding"]
    assert not (await ann.recall("x")).hits
    error = await refused(ann.recall("x", query_embedding=[1.0]))
    assert error.reason == "DIMENSION_MISMATCH"


async def test_one_bad_turn_stores_none(memory: Memory) -> None:
    ann = memory.caller()
    request = append()
    request.turns.add().message.role = content.ROLE_USER
    await refused(ann.call("AppendMessages", request))
    assert not (await ann.window("talk")).turns


async def test_every_mistake_is_listed_at_once(memory: Memory) -> None:
    error = await refused(
        memory.caller().call(
            "Recall", recall_pb2.RecallRequest(limit=999, pack_tokens=-1, pack_neighbours=11, kinds=[99])
        )
    )
    assert isinstance(error, InvalidArgument)
    assert {violation.field for violation in error.violations} == {
        "query",
        "limit",
        "pack_tokens",
        "pack_neighbours",
        "kinds[0]",
    }


async def test_odd_but_valid_text_is_stored_and_found(memory: Memory) -> None:
    ann = memory.caller()
    odd = [
        "e\u0301" * 50,
        "\u202e\u202dright to left",
        "a" + "\u0300" * 5_000,
        "' OR 1=1; -- \\ % _ ' | & ! <->",
        "🦢" * 100,
    ]
    await ann.append("talk", *odd)
    for text in odd:
        assert (await ann.recall(text)).hits is not None
    await ann.append("talk", "word " * 200_000, "".join(map(chr, range(0x4E00, 0x9FFF))) * 2)
    assert (await ann.recall("word", limit=1)).hits


async def test_ids_that_look_alike_are_different(memory: Memory) -> None:
    ann = memory.caller()
    await ann.append("talk", "lower")
    await ann.append("Talk", "upper")
    assert len((await ann.window("talk")).turns) == 1
    error = await refused(ann.append("tälk", "x"))
    assert isinstance(error, InvalidArgument)


# Every method, found in the descriptor, with one value spoilt at a time.

WORD = "zq9c1f"
TEXT, FLOAT, DOUBLE = (
    FieldDescriptor.CPPTYPE_STRING,
    FieldDescriptor.CPPTYPE_FLOAT,
    FieldDescriptor.CPPTYPE_DOUBLE,
)
# What nobody reads: the mask names other fields, and an import's config another space.
UNREAD = {
    ("UpdateMemory", "Memory.predicate"),
    ("UpdateMemory", "Memory.importance"),
    ("UpdateMemory", "Memory.embedding"),
    ("UpdateMemory", "Provenance.message_id"),
    ("UpdateMemory", "Provenance.quote"),
    ("Import", "Space.name"),
}


def sent(method: str) -> list[Message]:
    values = values_of(replace(Names.new(), space="s"), WORD)
    return requests(METHODS[method], {**values, "page_token": WORD, "consistency_token": WORD})


def places(messages: Sequence[Message], *kinds: int) -> list[Leaf]:
    """A value of each field of some kinds."""
    found = [leaf for message in messages for leaf in leaves(message) if leaf.field.cpp_type in kinds]
    texts_only = [leaf for leaf in found if leaf.field.type != FieldDescriptor.TYPE_BYTES]
    return list({leaf.field.full_name: leaf for leaf in texts_only}.values())


def spoilt(method: str, value: Any, *kinds: int) -> Iterator[tuple[str, list[Message]]]:
    """What to send with a value in one of the fields, each field once; and the field."""
    for place in range(len(places(sent(method), *kinds))):
        messages = sent(method)
        leaf = places(messages, *kinds)[place]
        leaf.put(value)
        name = leaf.field.full_name.removeprefix("janus.memory.v1.")
        yield name, sealed(messages) if method == "Import" else messages


async def refusal(ann: Caller, method: str, messages: Sequence[Message]) -> JanusError | None:
    """Why it was refused, or an item of it; None: it was not."""
    kind = METHODS[method]
    request: Any = iter(messages) if kind.client_streaming else messages[0]
    call = getattr(ann.stub, method)(request, metadata=ann.metadata, timeout=30)
    try:
        answers = [each async for each in call] if kind.server_streaming else [await call]
    except grpc.aio.AioRpcError as error:
        if error.details() == "Internal error from Core":
            # The client's library: it was still sending when the refusal came.
            return await refusal(ann, method, messages)
        return from_rpc(error)
    errors = answers[0].errors if isinstance(answers[0], pb.IngestResponse) else []
    return from_status(errors[0].status) if errors else None


async def accepted(memory: Memory, value: Any, *kinds: int) -> set[tuple[str, str]]:
    """Fields in which a value was not refused for itself."""
    ann = memory.caller()
    await ann.call("PutSpace", pb.PutSpaceRequest(space=space_pb2.Space(name="s", dimensions=DIMENSIONS)))
    return {
        (method, field)
        for method in METHODS
        for field, messages in spoilt(method, value, *kinds)
        if not names_it(await refusal(ann, method, messages), field)
    }


def names_it(error: JanusError | None, field: str) -> bool:
    violations = error.violations if isinstance(error, InvalidArgument) else ()
    return any(re.sub(r"\[\d+\]$", "", each.field).endswith(field.rpartition(".")[2]) for each in violations)


@pytest.mark.parametrize("text", ["a\x00b", WORD * 580_000], ids=["with NUL", "of 3.5 MB"])
async def test_no_method_takes_a_text_that_no_store_can_hold(memory: Memory, text: str) -> None:
    assert await accepted(memory, text, TEXT) <= UNREAD


@pytest.mark.parametrize("number", [NAN, float("inf"), -float("inf")])
async def test_no_method_takes_a_number_that_is_none(memory: Memory, number: float) -> None:
    assert await accepted(memory, number, FLOAT, DOUBLE) <= UNREAD


async def test_a_message_of_ten_megabytes_is_refused_by_every_method(memory: Memory) -> None:
    ann = memory.caller()
    for method in METHODS:
        [first, *_] = sent(method)
        places([first], TEXT)[0].put(WORD * (10 * 1024 * 1024 // len(WORD)))
        error = await refusal(ann, method, [first])
        assert isinstance(error, InvalidArgument), (method, error)
        assert error.message == "request: must be at most 4194304 bytes encoded"


async def test_text_that_is_no_utf8_is_refused_by_every_method(memory: Memory) -> None:
    async with connect(memory.host.address or "") as channel:
        for method, kind in METHODS.items():
            [first, *_] = sent(method)
            places([first], TEXT)[0].put("??")
            raw = first.SerializeToString().replace(b"??", b"\xff\xfe")
            shape = ("stream" if each else "unary" for each in (kind.client_streaming, kind.server_streaming))
            call = getattr(channel, "_".join(shape))(f"/{kind.containing_service.full_name}/{method}")
            answer = call(iter([raw]) if kind.client_streaming else raw, timeout=20)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await (anext(aiter(answer)) if kind.server_streaming else answer)
            assert isinstance(from_rpc(raised.value), InvalidArgument), method


async def test_who_an_update_names_besides_is_checked_like_any_other(memory: Memory) -> None:
    """It goes on record with the answer, where a NUL cannot be."""
    request = update("text", text="x", scope=scope_pb2.Scope(subject="a\x00"))
    request.request_id = "r"
    error = await refused(memory.caller().call("UpdateMemory", request))
    assert [violation.field for violation in error.violations] == ["memory.scope.subject"]


# Clocks that jump.


class Jumping:
    """A clock that is wrong by as much as a test says."""

    def __init__(self) -> None:
        self.wrong = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.wrong

    def monotonic(self) -> float:
        return time.monotonic()


async def test_the_servers_clock_may_jump_at_any_time(
    postgres_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Jumping()
    monkeypatch.setattr("janus_memory.app.SystemClock", lambda: clock)
    async with running(postgres_url, redis_url) as service:
        ann = service.caller()
        said_so_far: list[str] = []
        for number, wrong in enumerate((0, 600, -600, 86_400, -86_400, 10**9, -(10**9), 0)):
            clock.wrong = timedelta(seconds=wrong)
            said_so_far.append(f"turn {number} of the heron")
            done = await ann.append("talk", said_so_far[-1], request_id=f"r{number}")
            again = await ann.append("talk", said_so_far[-1], request_id=f"r{number}")
            assert (again.first_position, done.first_position) == (number + 1, number + 1)
            kept = await ann.remember(f"fact {number} of the heron", consistency=scope_pb2.CONSISTENCY_READ_YOUR_WRITES)
            assert kept.searchable
            changed = update("text", id=kept.memory_ids[0], text=f"fact {number} of the stork")
            await ann.call("UpdateMemory", changed)
            assert texts(await ann.window("talk")) == said_so_far
            found = texts(await ann.recall("heron stork", limit=200, consistency_token=done.consistency_token))
            assert sorted(found) == sorted(said_so_far + [f"fact {each} of the stork" for each in range(number + 1)])
            history = await ann.call("GetHistory", pb.GetHistoryRequest(memory_id=kept.memory_ids[0]))
            times = [version.memory.recorded_at.ToDatetime() for version in history.versions]
            assert times == sorted(times)
            listed = await ann.call("ListMemories", pb.ListMemoriesRequest())
            assert [each.text for each in listed.memories] == [f"fact {n} of the stork" for n in range(number, -1, -1)]
        gone = await ann.call("ForgetMemory", pb.ForgetMemoryRequest(memory_id=kept.memory_ids[0]))
        assert abs(gone.forgotten_at.ToDatetime(UTC) - datetime.now(UTC)) < timedelta(minutes=1)


async def test_a_clients_clock_decides_neither_order_nor_what_is_found(memory: Memory) -> None:
    ann = memory.caller()
    times = [2024, 1, 9999, 1969, 2024]
    turns = [said(f"heron {n}", at=datetime(year, 1, 2, tzinfo=UTC)) for n, year in enumerate(times)]
    for turn in turns:
        await ann.append("talk", turn)
    window = await ann.window("talk")
    assert texts(window) == [f"heron {n}" for n in range(len(times))]
    assert [turn.occurred_at.ToDatetime().year for turn in window.turns] == times
    assert set(texts(await ann.recall("heron"))) == set(texts(window))
