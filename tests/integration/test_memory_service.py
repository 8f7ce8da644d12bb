"""Memory over gRPC, on real Postgres, Redis and Chroma."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import asyncpg
import grpc
import pytest
from tests.fakes.memory_service import Caller, Memory, refused, said, texts

from janus_api.content.v1 import message_pb2 as content
from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import memory_service_pb2_grpc as rpc
from janus_api.memory.v1 import recall_pb2, record_pb2, scope_pb2, space_pb2
from janus_kit.errors import Aborted, AlreadyExists, FailedPrecondition, NotFound, Unavailable

MAY = datetime(2023, 5, 8, 13, 56, tzinfo=UTC)
NOW_ISH = scope_pb2.CONSISTENCY_READ_YOUR_WRITES


@pytest.fixture
def ann(memory: Memory) -> Caller:
    return memory.caller()


async def test_turns_come_back_in_order_with_what_the_server_added(ann: Caller) -> None:
    done = await ann.append("talk", said("hello", "Ann", MAY), said("hi there", "Bob", MAY))
    assert (done.first_position, done.last_position) == (1, 2)
    window = await ann.window("talk")
    assert texts(window) == ["hello", "hi there"]
    assert [turn.message.id for turn in window.turns] == list(done.message_ids)
    assert [turn.position for turn in window.turns] == [1, 2]
    assert window.turns[0].occurred_at.ToDatetime(UTC) == MAY
    assert window.turns[0].HasField("recorded_at")
    assert window.turns[0].scope.thread == "talk"
    assert (window.omitted, list(window.degraded)) == (0, [])


async def test_a_message_survives_byte_for_byte(ann: Caller) -> None:
    message = content.Message(role=content.ROLE_ASSISTANT, id="m1", name="Ann")
    message.created_at.FromDatetime(MAY)
    message.parts.add().reasoning.CopyFrom(
        content.Reasoning(redacted=b"\x00\xff\x01", signature=b"\xfe\x00", issuer="anthropic")
    )
    message.parts.add().opaque.CopyFrom(content.OpaquePart(issuer="openai", type="x", data=b"\x00{}\xff"))
    message.parts.add().tool_call.CopyFrom(content.ToolCall(call_id="c", name="t", arguments_json='{"a": 1.0,}'))
    metadata = '{"b": 1.00, "a": [null, "é"]}'
    await ann.append("talk", record_pb2.Turn(message=message, metadata_json=metadata))
    window = await ann.window("talk")
    assert window.turns[0].message == message
    assert window.turns[0].metadata_json == metadata


async def test_answers_about_images_are_such_that_any_client_can_receive_them(memory: Memory, ann: Caller) -> None:
    for place in range(3):
        turn = said(f"a heron, picture {place}")
        turn.message.parts.add().image.CopyFrom(content.Media(mime_type="image/png", data=bytes(2_500_000)))
        await ann.append("talk", turn)
    async with grpc.aio.insecure_channel(memory.host.address or "") as channel:
        plain = Caller(rpc.MemoryServiceStub(channel), ann.tenant)
        found = await plain.recall("heron picture")
        assert len(found.hits) == 3
        for hit in found.hits:
            assert hit.turn.message.parts[1].image == content.Media(mime_type="image/png")
        window = await plain.window("talk")
    assert [turn.position for turn in window.turns] == [3]
    assert len(window.turns[0].message.parts[1].image.data) == 2_500_000
    assert window.omitted == 2


async def test_concurrent_appends_leave_no_gap(ann: Caller) -> None:
    await asyncio.gather(*(ann.append("talk", *[f"turn {i}.{j}" for j in range(3)]) for i in range(12)))
    window = await ann.window("talk", max_messages=1000)
    assert [turn.position for turn in window.turns] == list(range(1, 37))
    assert len(set(texts(window))) == 36


async def test_a_window_keeps_tool_calls_with_their_results(ann: Caller) -> None:
    call = record_pb2.Turn(message=content.Message(role=content.ROLE_ASSISTANT))
    call.message.parts.add().tool_call.CopyFrom(content.ToolCall(call_id="c1", name="clock", arguments_json="{}"))
    result = record_pb2.Turn(message=content.Message(role=content.ROLE_TOOL))
    result.message.parts.add().tool_result.CopyFrom(content.ToolResult(call_id="c1", parts=[content.Part(text="noon")]))
    await ann.append("talk", "what time is it?", call, result, "thanks")
    assert [turn.position for turn in (await ann.window("talk", max_messages=2)).turns] == [4]
    window = await ann.window("talk", max_messages=3)
    assert [turn.position for turn in window.turns] == [2, 3, 4]
    assert window.omitted == 1


@pytest.mark.parametrize("lost", ["never made", "far back", "forgotten"])
async def test_a_result_whose_call_is_not_shown_hides_nothing_else(ann: Caller, lost: str) -> None:
    def calls(name: str) -> record_pb2.Turn:
        part = content.Part(tool_call=content.ToolCall(call_id=name, name="look_up"))
        return record_pb2.Turn(message=content.Message(id="call", role=content.ROLE_ASSISTANT, parts=[part]))

    part = content.Part(tool_result=content.ToolResult(call_id=lost, parts=[content.Part(text="found")]))
    result = record_pb2.Turn(message=content.Message(role=content.ROLE_TOOL, parts=[part]))
    first = said("hello") if lost == "never made" else calls(lost)
    await ann.append("talk", first, *(f"turn {number}" for number in range(2, 9)), result, "turn 10", "turn 11")
    if lost == "forgotten":
        where = scope_pb2.Scope(thread="talk")
        await ann.call("ForgetMessages", pb.ForgetMessagesRequest(scope=where, message_ids=["call"]))
    window = await ann.window("talk", max_messages=5)
    assert [turn.position for turn in window.turns] == [6, 7, 8, 10, 11]
    assert window.omitted == (5 if lost == "forgotten" else 6)


async def test_a_window_stays_within_its_tokens(ann: Caller) -> None:
    await ann.append("talk", *["word " * 40 for _ in range(10)])
    window = await ann.window("talk", max_tokens=200)
    assert 0 < window.tokens <= 200
    assert len(window.turns) + window.omitted == 10


async def test_a_thread_without_turns_has_an_empty_window(ann: Caller) -> None:
    window = await ann.window("nothing")
    assert (len(window.turns), window.omitted) == (0, 0)


async def test_a_window_of_one_subject_parts_no_call_from_its_result(ann: Caller) -> None:
    def calls(name: str) -> record_pb2.Turn:
        part = content.Part(tool_call=content.ToolCall(call_id=name, name="look_up"))
        return record_pb2.Turn(message=content.Message(role=content.ROLE_ASSISTANT, parts=[part]))

    def result(name: str) -> record_pb2.Turn:
        part = content.Part(tool_result=content.ToolResult(call_id=name, parts=[content.Part(text="found")]))
        return record_pb2.Turn(message=content.Message(role=content.ROLE_TOOL, parts=[part]))

    async def positions(**scope: str) -> list[int]:
        return [turn.position for turn in (await ann.window("talk", scope=scope)).turns]

    await ann.append("talk", result("lost"), "where is it?", calls("k1"), scope={"subject": "ann"})
    await ann.append("talk", result("k1"), "over there")
    await ann.append("talk", "and that?", calls("k2"), result("k2"), calls("k3"), scope={"subject": "ann"})
    # k1 has its result in a turn of nobody's, and k3 still waits for its own.
    assert await positions(subject="ann") == [2, 6, 7, 8, 9]
    assert await positions() == list(range(2, 10))
    await ann.append("talk", result("k3"))
    assert await positions(subject="ann") == [2, 6, 7, 8]


async def test_a_window_can_be_of_one_subject(ann: Caller) -> None:
    await ann.append("talk", "of bob", scope={"subject": "bob"})
    await ann.append("talk", "of eve", scope={"subject": "eve"})
    assert texts(await ann.window("talk", scope={"subject": "eve"})) == ["of eve"]
    assert len((await ann.window("talk")).turns) == 2


async def test_the_same_request_id_gives_the_same_answer(ann: Caller) -> None:
    first = await ann.append("talk", "once", request_id="r1")
    again = await ann.append("talk", "once", request_id="r1")
    assert again.message_ids == first.message_ids
    assert len((await ann.window("talk")).turns) == 1
    error = await refused(ann.append("talk", "something else", request_id="r1"))
    assert isinstance(error, AlreadyExists)
    assert error.reason == "REQUEST_ID_REUSED"


async def test_twins_at_the_same_time_are_one_write(ann: Caller) -> None:
    answers = await asyncio.gather(*(ann.append("talk", "once", request_id="r1") for _ in range(6)))
    assert len({tuple(answer.message_ids) for answer in answers}) == 1
    assert len((await ann.window("talk")).turns) == 1


async def test_a_request_id_is_of_one_method(ann: Caller) -> None:
    await ann.append("talk", "once", request_id="r1")
    assert (await ann.remember("something", request_id="r1")).memory_ids


async def test_a_refused_write_does_not_use_up_its_request_id(ann: Caller) -> None:
    await ann.append("talk", said("one", id="m1"))
    assert isinstance(await refused(ann.append("talk", said("two", id="m1"), request_id="r1")), AlreadyExists)
    await ann.append("talk", said("three", id="m3"), request_id="r1")
    assert texts(await ann.window("talk")) == ["one", "three"]


async def test_appending_a_known_message_again_changes_nothing(ann: Caller) -> None:
    await ann.append("talk", said("one", id="m1"), said("two", id="m2"))
    again = await ann.append("talk", said("two", id="m2"), said("three", id="m3"))
    assert (again.first_position, again.last_position) == (2, 3)
    assert texts(await ann.window("talk")) == ["one", "two", "three"]
    error = await refused(ann.append("talk", said("TWO", id="m2")))
    assert isinstance(error, AlreadyExists)
    assert error.reason == "RESOURCE_EXISTS"


@pytest.mark.parametrize("backend", [space_pb2.VECTOR_BACKEND_PGVECTOR, space_pb2.VECTOR_BACKEND_CHROMA])
async def test_recall_finds_what_was_said_and_what_is_remembered(ann: Caller, backend: int) -> None:
    await ann.call("PutSpace", pb.PutSpaceRequest(space=space_pb2.Space(name="s", backend=backend)))
    await ann.append(
        "talk",
        said("I painted the old bridge at sunrise", "Melanie", MAY),
        said("How lovely!", "Caroline", MAY),
        said("My brother fixed the car", "Caroline", MAY + timedelta(days=3)),
        scope={"space": "s"},
    )
    done = await ann.remember("Melanie likes painting bridges", scope={"space": "s"}, consistency=NOW_ISH)
    assert done.searchable
    await ann.indexed("s")
    answer = await ann.recall("When did Melanie paint a bridge?", scope={"space": "s"}, explain=True)
    assert not answer.degraded
    assert answer.embedding_model == "janus/lexical-v1"
    assert set(texts(answer)[:2]) == {"I painted the old bridge at sunrise", "Melanie likes painting bridges"}
    for hit in answer.hits:
        assert sum(detail.contribution for detail in hit.details) == pytest.approx(hit.score, abs=1e-9)
    legs = {detail.leg for detail in answer.hits[0].details}
    assert {"lexical_turn", "lexical_wide", "dense_turn", "dense_before", "speaker", "session"} <= legs
    facts = await ann.recall("bridge", scope={"space": "s"}, kinds=[recall_pb2.RECORD_KIND_FACT])
    assert texts(facts) == ["Melanie likes painting bridges"]


async def test_a_misspelt_word_is_found_by_the_dense_leg(ann: Caller) -> None:
    await ann.append("talk", "the dentist appointment moved", "we bought tulips", "nothing else", consistency=NOW_ISH)
    assert texts(await ann.recall("dentsit"))[0] == "the dentist appointment moved"


async def test_a_session_is_found_by_its_date(ann: Caller) -> None:
    await ann.append("talk", said("we met", at=MAY), said("we met", at=MAY + timedelta(days=40)))
    answer = await ann.recall("what happened on 8 May 2023?")
    assert answer.hits[0].turn.occurred_at.ToDatetime(UTC) == MAY


async def test_scope_is_a_hard_filter(ann: Caller) -> None:
    await ann.remember("the safe code is red", scope={"subject": "bob"})
    await ann.remember("the safe code is blue", scope={"subject": "eve", "agent": "helper"})
    await ann.append("talk", "the safe code is green", scope={"subject": "eve"})
    assert len((await ann.recall("safe code")).hits) == 3
    assert texts(await ann.recall("safe code", scope={"subject": "bob"})) == ["the safe code is red"]
    assert texts(await ann.recall("safe code", scope={"agent": "helper"})) == ["the safe code is blue"]
    assert texts(await ann.recall("safe code", scope={"thread": "talk"})) == ["the safe code is green"]


async def test_what_was_not_yet_or_no_longer_true_is_not_recalled(ann: Caller) -> None:
    old = record_pb2.Memory(kind=record_pb2.MEMORY_KIND_FACT, text="she lives in Oslo")
    old.valid_to.FromDatetime(MAY)
    new = record_pb2.Memory(kind=record_pb2.MEMORY_KIND_FACT, text="she lives in Rome")
    new.valid_from.FromDatetime(MAY)
    gone = record_pb2.Memory(kind=record_pb2.MEMORY_KIND_FACT, text="she lives in a hotel")
    gone.expires_at.FromDatetime(datetime.now(UTC) - timedelta(days=1))
    await ann.remember(old, new, gone)
    assert texts(await ann.recall("where does she live")) == ["she lives in Rome"]
    before = recall_pb2.RecallRequest(query="where does she live")
    before.valid_at.FromDatetime(MAY - timedelta(days=1))
    assert texts(await ann.call("Recall", before)) == ["she lives in Oslo"]
    unknown = recall_pb2.RecallRequest(query="where does she live")
    unknown.recorded_at.FromDatetime(MAY)
    assert texts(await ann.call("Recall", unknown)) == []


async def test_an_expired_memory_comes_back_as_a_new_version(ann: Caller) -> None:
    memory = record_pb2.Memory(kind=record_pb2.MEMORY_KIND_FACT, text="the gate is open")
    memory.expires_at.FromDatetime(datetime.now(UTC) - timedelta(seconds=1))
    first = await ann.remember(memory)
    assert texts(await ann.recall("gate")) == []
    memory.ClearField("expires_at")
    again = await ann.remember(memory, consistency=NOW_ISH)
    assert again.memory_ids == first.memory_ids
    [hit] = (await ann.recall("gate")).hits
    assert hit.memory.version == 2


async def test_the_same_memory_is_remembered_once(ann: Caller) -> None:
    first = await ann.remember("the sky is blue", "the sky is blue", "grass is green")
    assert first.memory_ids[0] == first.memory_ids[1] != first.memory_ids[2]
    again = await asyncio.gather(*(ann.remember("the sky is blue") for _ in range(5)))
    assert {tuple(answer.memory_ids) for answer in again} == {(first.memory_ids[0],)}
    other = await ann.remember("the sky is blue", scope={"subject": "bob"})
    assert other.memory_ids[0] != first.memory_ids[0]


async def test_an_id_with_other_content_is_taken(ann: Caller) -> None:
    fact = record_pb2.Memory(id="mine", kind=record_pb2.MEMORY_KIND_FACT, text="one")
    assert list((await ann.remember(fact)).memory_ids) == ["mine"]
    assert list((await ann.remember(fact)).memory_ids) == ["mine"]
    fact.text = "two"
    assert isinstance(await refused(ann.remember(fact)), AlreadyExists)


async def test_a_memory_comes_back_as_it_was_given(ann: Caller) -> None:
    memory = record_pb2.Memory(
        id="mine",
        kind=record_pb2.MEMORY_KIND_PREFERENCE,
        text="prefers tea over coffee",
        predicate="prefers",
        importance=0.9,
        metadata_json='{"source": "chat"}',
        provenance=[record_pb2.Provenance(message_id="m1", quote="tea please", origin=record_pb2.ORIGIN_USER)],
        scope=scope_pb2.Scope(subject="bob"),
    )
    memory.valid_from.FromDatetime(MAY)
    await ann.remember(memory)
    [hit] = (await ann.recall("tea")).hits
    assert hit.memory.HasField("recorded_at")
    for field in ("version", "recorded_at"):
        hit.memory.ClearField(field)
    memory.scope.space = "default"
    assert hit.memory == memory


async def test_a_fact_without_a_source_comes_from_who_wrote_it(ann: Caller) -> None:
    fact, event = record_pb2.MEMORY_KIND_FACT, record_pb2.MEMORY_KIND_EVENT
    said_by_another = record_pb2.Provenance(client="somebody else", origin=record_pb2.ORIGIN_USER)
    named = record_pb2.Provenance(document="letter.txt", origin=record_pb2.ORIGIN_IMPORT)
    await ann.remember(
        record_pb2.Memory(id="bare", kind=fact, text="tea at four"),
        record_pb2.Memory(id="pretended", kind=fact, text="tea at five", provenance=[said_by_another]),
        record_pb2.Memory(id="named", kind=fact, text="tea at six", provenance=[named, said_by_another]),
        record_pb2.Memory(id="event", kind=event, text="had tea at seven"),
    )
    [version] = (await ann.call("GetHistory", pb.GetHistoryRequest(memory_id="bare"))).versions
    client = record_pb2.Provenance(client=version.changed_by)
    assert client.client
    found = {hit.memory.id: list(hit.memory.provenance) for hit in (await ann.recall("tea")).hits}
    assert found == {"bare": [client], "pretended": [client], "named": [named], "event": []}


async def test_a_client_can_bring_its_own_vectors(ann: Caller) -> None:
    await ann.call("PutSpace", pb.PutSpaceRequest(space=space_pb2.Space(name="own", dimensions=3)))
    memories = [
        record_pb2.Memory(kind=record_pb2.MEMORY_KIND_FACT, text=text, embedding=vector)
        for text, vector in (("first", [1, 0, 0]), ("second", [0, 1, 0]), ("third", [0, 0, 1]))
    ]
    await ann.remember(*memories, scope={"space": "own"}, consistency=NOW_ISH)
    answer = await ann.recall("unrelated", scope={"space": "own"}, query_embedding=[0.1, 0.9, 0], explain=True)
    assert texts(answer)[0] == "second"


async def test_a_recall_searches_a_space_as_it_is_and_not_as_the_last_recall_found_it(
    ann: Caller, owner: asyncpg.Connection
) -> None:
    await ann.call("PutSpace", pb.PutSpaceRequest(space=space_pb2.Space(name="own", dimensions=3)))
    fact = record_pb2.Memory(kind=record_pb2.MEMORY_KIND_FACT, text="plain", embedding=[0, 1, 0])
    await ann.remember(fact, scope={"space": "own"}, consistency=NOW_ISH)

    async def found() -> list[str]:
        answer = await ann.recall("unrelated", scope={"space": "own"}, query_embedding=[0.1, 0.9, 0])
        assert not answer.degraded
        return [hit.memory.text for hit in answer.hits]

    assert [await found() for _ in range(3)] == [["plain"]] * 3
    # What is searched by now was not there the last time, and is empty.
    step = "UPDATE memory.space SET generation = generation + $2 WHERE tenant = $1 AND name = 'own'"
    for change, texts_found in ((1, []), (-1, ["plain"])):
        await owner.execute(step, ann.tenant, change)
        assert [await found() for _ in range(2)] == [texts_found] * 2
    await owner.execute("UPDATE memory.space SET dimensions = 2 WHERE tenant = $1 AND name = 'own'", ann.tenant)
    assert (await refused(found())).reason == "DIMENSION_MISMATCH"


async def test_read_your_writes_is_searchable_when_it_answers(ann: Caller) -> None:
    done = await ann.append("talk", "the heron stood still", consistency=NOW_ISH)
    assert done.searchable
    answer = await ann.recall("heron", explain=True, consistency_token=done.consistency_token)
    dense = next(detail for detail in answer.hits[0].details if detail.leg == "dense_turn")
    assert dense.raw > 0.2


async def test_packing_gives_context_within_its_budget(ann: Caller) -> None:
    await ann.append("talk", *[said(f"the heron number {i} stood still in the pond", "Ann", MAY) for i in range(30)])
    answer = await ann.recall("heron in the pond", limit=30, pack_tokens=100)
    assert 0 < answer.packed.tokens <= 100
    assert answer.packed.spans[0].text.startswith("[8 May 2023]")
    assert not (await ann.recall("heron")).HasField("packed")


async def test_an_empty_space_recalls_nothing(ann: Caller) -> None:
    answer = await ann.recall("anything")
    assert (len(answer.hits), list(answer.degraded)) == (0, [])


async def test_a_query_of_stop_words_is_answered(ann: Caller) -> None:
    await ann.append("talk", "the heron stood still", consistency=NOW_ISH)
    assert (await ann.recall("what is it with the")).hits is not None


async def test_the_default_space_always_exists(ann: Caller) -> None:
    space = (await ann.call("GetSpace", pb.GetSpaceRequest(name="default"))).space
    assert (space.backend, space.embedding_model, space.dimensions) == (1, "janus/lexical-v1", 384)
    listed = await ann.call("ListSpaces", pb.ListSpacesRequest())
    assert [each.name for each in listed.spaces] == ["default"]


async def test_spaces_are_listed_in_pages_by_name(ann: Caller) -> None:
    for name in ("b", "a", "c"):
        await ann.call("PutSpace", pb.PutSpaceRequest(space=space_pb2.Space(name=name)))
    found, token = [], ""
    while True:
        page = await ann.call("ListSpaces", pb.ListSpacesRequest(page_size=2, page_token=token))
        found += [each.name for each in page.spaces]
        token = page.next_page_token
        if not token:
            break
    assert found == ["a", "b", "c", "default"]


async def test_backend_and_model_of_a_space_stay(ann: Caller) -> None:
    made = space_pb2.Space(name="s", backend=space_pb2.VECTOR_BACKEND_CHROMA)
    assert (await ann.call("PutSpace", pb.PutSpaceRequest(space=made))).space.version == 1
    for change in (
        space_pb2.Space(name="s", backend=space_pb2.VECTOR_BACKEND_PGVECTOR),
        space_pb2.Space(name="s", embedding_model="openai/text-embedding-3-small"),
        space_pb2.Space(name="s", dimensions=64),
    ):
        error = await refused(ann.call("PutSpace", pb.PutSpaceRequest(space=change)))
        assert isinstance(error, FailedPrecondition)
        assert error.reason == "STATE_CONFLICT"
    changed = space_pb2.Space(name="s", description="new", weights=recall_pb2.RecallWeights(speaker=0))
    space = (await ann.call("PutSpace", pb.PutSpaceRequest(space=changed, expected_version=1))).space
    assert (space.version, space.description, space.backend) == (2, "new", space_pb2.VECTOR_BACKEND_CHROMA)
    assert space.weights.HasField("speaker")
    error = await refused(ann.call("PutSpace", pb.PutSpaceRequest(space=changed, expected_version=1)))
    assert isinstance(error, Aborted)
    assert error.metadata["current_version"] == "2"


async def test_a_space_that_is_not_there_is_not_found(ann: Caller) -> None:
    for call in (
        ann.append("talk", "x", scope={"space": "nowhere"}),
        ann.remember("x", scope={"space": "nowhere"}),
        ann.recall("x", scope={"space": "nowhere"}),
        ann.window("talk", scope={"space": "nowhere"}),
        ann.call("GetSpace", pb.GetSpaceRequest(name="nowhere")),
    ):
        assert isinstance(await refused(call), NotFound)


async def test_a_model_without_an_inference_service_is_unavailable(ann: Caller) -> None:
    space = space_pb2.Space(name="s", embedding_model="openai/text-embedding-3-small")
    error = await refused(ann.call("PutSpace", pb.PutSpaceRequest(space=space)))
    assert isinstance(error, Unavailable)


async def test_metadata_is_kept_for_filters(ann: Caller, postgres_url: str) -> None:
    import asyncpg

    turn = said("hello")
    turn.metadata_json = json.dumps({"channel": "web"})
    await ann.append("talk", turn)
    connection = await asyncpg.connect(postgres_url)
    try:
        found = await connection.fetchval("SELECT metadata->>'channel' FROM memory.unit WHERE tenant = $1", ann.tenant)
    finally:
        await connection.close()
    assert found == "web"
