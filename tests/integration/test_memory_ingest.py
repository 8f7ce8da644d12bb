"""Ingest over gRPC, on real Postgres."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import pytest
import pytest_asyncio
from tests.fakes.memory_service import Caller, Memory, eventually, refused, running, said, texts

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import record_pb2, scope_pb2, space_pb2
from janus_kit.errors import AlreadyExists, InvalidArgument, JanusError, NotFound
from janus_kit.rpc_errors import from_status

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def memory(postgres_url: str, redis_url: str) -> AsyncIterator[Memory]:
    async with running(postgres_url, redis_url) as service:
        yield service


@pytest.fixture
def ann(memory: Memory) -> Caller:
    return memory.caller()


Piece = record_pb2.Memory | record_pb2.Turn | pb.IngestDocument | str


def messages(pieces: Iterable[Piece], scope: dict[str, str] | None = None, request_id: str = "") -> list[Any]:
    config = pb.IngestConfig(scope=scope_pb2.Scope(**(scope or {})), request_id=request_id)
    return [pb.IngestRequest(config=config), *map(message, pieces)]


def message(piece: Piece) -> pb.IngestRequest:
    if isinstance(piece, str):
        return pb.IngestRequest(memory=fact(piece))
    if isinstance(piece, record_pb2.Memory):
        return pb.IngestRequest(memory=piece)
    if isinstance(piece, record_pb2.Turn):
        return pb.IngestRequest(turn=piece)
    return pb.IngestRequest(document=piece)


def fact(text: str, **fields: Any) -> record_pb2.Memory:
    return record_pb2.Memory(kind=record_pb2.MEMORY_KIND_FACT, text=text, **fields)


def in_thread(thread: str, turn: record_pb2.Turn) -> record_pb2.Turn:
    turn.scope.thread = thread
    return turn


async def ingest(caller: Caller, *pieces: Piece, **config: Any) -> pb.IngestResponse:
    answer: pb.IngestResponse = await caller.call("Ingest", iter(messages(pieces, **config)))
    return answer


def errors(answer: pb.IngestResponse) -> dict[int, JanusError]:
    return {each.index: from_status(each.status) for each in answer.errors}


async def test_memories_turns_and_documents_are_stored_and_found(ann: Caller) -> None:
    document = pb.IngestDocument(name="https://a.example/birds", text="Herons wade.\n\nOwls hunt at night.")
    answer = await ingest(ann, "the bridge is red", said("we painted it", "Ann"), document, scope={"thread": "talk"})
    assert (answer.stored, answer.unchanged, answer.rejected, len(answer.errors)) == (3, 0, 0, 0)
    for query, text in (
        ("bridge", "the bridge is red"),
        ("painted", "we painted it"),
        ("owls", "Herons wade.\n\nOwls hunt at night."),
    ):
        found = await ann.recall(query, consistency_token=answer.consistency_token)
        assert texts(found)[0] == text
    assert texts(await ann.window("talk")) == ["we painted it"]


async def test_a_thousand_memories_are_all_there(ann: Caller) -> None:
    answer = await ingest(ann, *(f"number {n} is a number" for n in range(1_300)))
    assert (answer.stored, answer.rejected) == (1_300, 0)
    await ann.indexed()
    assert texts(await ann.recall("number 1299", limit=1)) == ["number 1299 is a number"]


async def test_a_bad_item_is_reported_as_its_own_write_would_be_and_the_others_are_stored(ann: Caller) -> None:
    await ann.remember(fact("taken", id="m1"))
    await ann.append("talk", said("taken", id="t1"))
    pieces: list[Piece] = [
        "good",
        fact(""),
        fact("other", id="m1"),
        fact("x", embedding=[1.0, 2.0]),
        fact("x", scope=scope_pb2.Scope(space="nowhere")),
        in_thread("talk", said("other", id="t1")),
        said("no thread"),
        fact("nul \0"),
        fact("x", metadata_json="[]"),
        "also good",
        in_thread("talk", said("good too")),
        in_thread("talk", said("good")),
    ]
    answer = await ingest(ann, *pieces)
    assert (answer.stored, answer.unchanged, answer.rejected) == (4, 0, 8)
    alone = {
        1: ann.remember(fact("")),
        2: ann.remember(fact("other", id="m1")),
        3: ann.remember(fact("x", embedding=[1.0, 2.0])),
        4: ann.remember(fact("x", scope=scope_pb2.Scope(space="nowhere"))),
        5: ann.append("talk", said("other", id="t1")),
        6: ann.append("", said("no thread")),
        7: ann.remember(fact("nul \0")),
        8: ann.remember(fact("x", metadata_json="[]")),
    }
    assert [error.index for error in answer.errors] == list(range(1, 9))
    found = errors(answer)
    for place, call in alone.items():
        expected = await refused(call)
        assert (type(found[place]), found[place].reason, found[place].message, dict(found[place].metadata)) == (
            type(expected),
            expected.reason,
            expected.message,
            dict(expected.metadata),
        )


async def test_what_is_there_already_is_unchanged(ann: Caller) -> None:
    pieces = [fact("a", id="m1"), "b", in_thread("talk", said("hello", id="t1")), pb.IngestDocument(name="d", text="c")]
    assert (await ingest(ann, *pieces)).stored == 4
    again = await ingest(ann, *pieces, "b")
    assert (again.stored, again.unchanged, again.rejected) == (0, 5, 0)
    assert (await ingest(ann, "e", "e")).unchanged == 1
    assert len((await ann.window("talk")).turns) == 1


async def test_turns_of_a_thread_keep_their_order(ann: Caller) -> None:
    turns = [in_thread(f"talk{n % 3}", said(f"turn {n}")) for n in range(900)]
    assert (await ingest(ann, *turns)).stored == 900
    for thread in range(3):
        window = await ann.window(f"talk{thread}", max_tokens=1_000_000, max_messages=1_000)
        assert texts(window) == [f"turn {n}" for n in range(thread, 900, 3)]
        assert [turn.position for turn in window.turns] == list(range(1, 301))


async def test_a_window_that_was_cached_shows_what_came_by_a_stream(ann: Caller) -> None:
    await ann.append("talk", "before")
    assert texts(await ann.window("talk")) == ["before"]
    await ingest(ann, in_thread("talk", said("after")))
    assert texts(await ann.window("talk")) == ["before", "after"]


async def test_a_document_is_cut_with_its_name_and_metadata_on_every_chunk(ann: Caller) -> None:
    text = "\n\n".join(f"Paragraph {n} says that {n} is a number. " + "More words follow it. " * 9 for n in range(30))
    answer = await ingest(
        ann, pb.IngestDocument(name="book.txt", text=text, chunk_size=400, metadata_json='{"lang": "en"}')
    )
    assert answer.stored > 10
    found = await ann.recall("paragraph", limit=200, consistency_token=answer.consistency_token)
    assert len(found.hits) == answer.stored
    by_number = {json.loads(hit.memory.metadata_json)["chunk"]: hit.memory for hit in found.hits}
    assert sorted(by_number) == list(range(1, answer.stored + 1))
    together = " ".join(by_number[n].text for n in sorted(by_number))
    assert together.split() == text.split()
    for chunk in by_number.values():
        assert json.loads(chunk.metadata_json)["lang"] == "en"
        assert chunk.kind == record_pb2.MEMORY_KIND_DOCUMENT_CHUNK
        assert [(source.document, source.origin) for source in chunk.provenance] == [
            ("book.txt", record_pb2.ORIGIN_IMPORT)
        ]
        assert len(chunk.text) <= 400


async def test_a_bad_document_names_its_field(ann: Caller) -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"name": ""}, "document.name"),
        ({"text": " \n"}, "document.text"),
        ({"text": "a\0"}, "document.text"),
        ({"metadata_json": "{"}, "document.metadata_json"),
        ({"chunk_size": 199}, "document.chunk_size"),
        ({"chunk_size": 8_001}, "document.chunk_size"),
    ]
    documents = (pb.IngestDocument(**{"name": "d", "text": "t", **fields}) for fields, _ in bad)
    answer = await ingest(ann, *documents, "good")
    assert (answer.stored, answer.rejected) == (1, len(bad))
    for place, refusal in errors(answer).items():
        assert isinstance(refusal, InvalidArgument)
        assert [violation.field for violation in refusal.violations] == [bad[place][1]]


async def test_the_keys_of_a_documents_own_metadata_win(ann: Caller) -> None:
    answer = await ingest(ann, pb.IngestDocument(name="d", text="herons", metadata_json='{"chunk": "mine"}'))
    found = await ann.recall("herons", consistency_token=answer.consistency_token)
    assert found.hits[0].memory.metadata_json == '{"chunk": "mine"}'


async def test_the_same_stream_again_gives_the_stored_answer(ann: Caller) -> None:
    pieces: list[Piece] = ["a", said("hello"), fact("")]
    config: dict[str, Any] = {"scope": {"thread": "talk"}, "request_id": "r1"}
    first = await ingest(ann, *pieces, **config)
    assert (first.stored, first.rejected) == (2, 1)
    assert await ingest(ann, *pieces, **config) == first
    error = await refused(ingest(ann, *pieces, "more", **config))
    assert error.reason == "REQUEST_ID_REUSED"
    assert len((await ann.window("talk")).turns) == 1
    assert not [hit for hit in (await ann.recall("more", limit=5)).hits if hit.memory.text == "more"]


async def test_a_stream_that_broke_off_can_be_sent_again(memory: Memory, ann: Caller) -> None:
    pieces: list[Piece] = [said(f"turn {n}") for n in range(600)]
    stream = messages(pieces, scope={"thread": "talk"}, request_id="r1")
    never = asyncio.Event()

    async def broken() -> AsyncIterator[pb.IngestRequest]:
        for piece in stream[:-1]:
            yield piece
        await never.wait()

    call = ann.stub.Ingest(broken(), metadata=ann.metadata, timeout=20)

    async def some_are_there() -> bool:
        return bool((await ann.window("talk")).turns)

    await eventually(some_are_there)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    answer = await ingest(ann, *pieces, scope={"thread": "talk"}, request_id="r1")
    assert answer.stored + answer.unchanged == 600
    assert answer.unchanged >= 1
    window = await ann.window("talk", max_messages=1_000, max_tokens=1_000_000)
    assert texts(window) == [f"turn {n}" for n in range(600)]


async def test_a_stream_that_makes_no_sense_is_refused(ann: Caller) -> None:
    wrong: list[tuple[list[Any], str]] = [
        ([], "config"),
        ([message("x")], "config"),
        ([*messages(["x"]), *messages([])], "config"),
        (messages([], scope={"space": "/"}), "config.scope.space"),
        (messages([], request_id="/"), "config.request_id"),
    ]
    for stream, field in wrong:
        error = await refused(ann.call("Ingest", iter(stream)))
        assert isinstance(error, InvalidArgument)
        assert error.violations[0].field == field


async def test_an_empty_piece_is_an_error_of_its_own(ann: Caller) -> None:
    answer = await ann.call("Ingest", iter([*messages(["a"]), pb.IngestRequest(), message("b")]))
    assert answer.stored == 2
    assert list(errors(answer)) == [1]


async def test_another_tenants_space_is_as_if_it_had_never_been(memory: Memory, ann: Caller) -> None:
    await ann.call("PutSpace", pb.PutSpaceRequest(space=space_pb2.Space(name="secret")))
    bob = memory.caller()
    for space in ("secret", "nothing"):
        error = await refused(ingest(bob, "x", scope={"space": space}))
        assert isinstance(error, NotFound)
        assert error.message == f"space '{space}' was not found"


async def test_only_the_first_thousand_errors_are_listed(ann: Caller) -> None:
    answer = await ingest(ann, *(fact("") for _ in range(1_100)))
    assert (answer.rejected, len(answer.errors), answer.errors[-1].index) == (1_100, 1_000, 999)


async def test_two_streams_with_the_same_records_store_each_once(ann: Caller) -> None:
    pieces = [f"fact {n}" for n in range(700)] + [in_thread("talk", said(f"t{n}", id=f"t{n}")) for n in range(40)]
    first, second = await asyncio.gather(ingest(ann, *pieces), ingest(ann, *reversed(pieces)))
    assert first.stored + second.stored == 740
    assert first.unchanged + second.unchanged == 740


async def test_a_row_that_the_database_refuses_stops_nobody_else(ann: Caller, postgres_url: str) -> None:
    import asyncpg

    owner = await asyncpg.connect(postgres_url)
    try:
        await owner.execute("ALTER TABLE memory.memory ADD CONSTRAINT no_poison CHECK (text <> 'poison') NOT VALID")
        answer = await ingest(ann, *(f"fact {n}" for n in range(100)), "poison", *(f"more {n}" for n in range(100)))
    finally:
        await owner.execute("ALTER TABLE memory.memory DROP CONSTRAINT no_poison")
        await owner.close()
    assert (answer.stored, answer.rejected) == (200, 1)
    assert errors(answer)[100].reason == "INTERNAL"
    assert answer.errors[0].status.code == grpc.StatusCode.INTERNAL.value[0]


async def test_an_id_taken_in_the_same_stream_is_refused(ann: Caller) -> None:
    answer = await ingest(ann, fact("a", id="m1"), fact("b", id="m1"))
    assert answer.stored == 1
    assert isinstance(errors(answer)[1], AlreadyExists)
