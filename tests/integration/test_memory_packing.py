"""Context for a prompt: what was found, with the turns that it rests on and those around it; over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.timestamp_pb2 import Timestamp
from tests.fakes.memory_service import Caller, Memory, running, said

from janus_api.memory.v1 import filter_pb2, recall_pb2, record_pb2, scope_pb2
from janus_api.memory.v1 import memory_service_pb2 as pb

# One service for all tests: each has a tenant of its own.
pytestmark = pytest.mark.asyncio(loop_scope="module")

MAY = datetime(2023, 5, 8, tzinfo=UTC)
FACT = recall_pb2.RECORD_KIND_FACT


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def memory(postgres_url: str, redis_url: str) -> AsyncIterator[Memory]:
    async with running(postgres_url, redis_url) as running_memory:
        yield running_memory


@pytest.fixture
def ann(memory: Memory) -> Caller:
    return memory.caller()


def fact(text: str, *sources: str, **fields: Any) -> record_pb2.Memory:
    provenance = [record_pb2.Provenance(message_id=source) for source in sources]
    return record_pb2.Memory(kind=record_pb2.MEMORY_KIND_FACT, text=text, provenance=provenance, **fields)


async def spans(ann: Caller, query: str, **fields: Any) -> list[tuple[list[str], list[str]]]:
    """(ids, ids of context) of each span."""
    packed = (await ann.recall(query, **{"limit": 1, "pack_tokens": 500, **fields})).packed
    return [(list(span.record_ids), list(span.context_ids)) for span in packed.spans]


async def talk(ann: Caller, thread: str = "talk", **fields: Any) -> None:
    """Five turns, m1 to m5, of which only m3 speaks of a heron."""
    words = ["good morning", "what did you see", "a heron by the pond", "how lovely", "time for lunch"]
    turns = [said(text, "Bob", MAY + timedelta(minutes=n), id=f"m{n}") for n, text in enumerate(words, 1)]
    await ann.append(thread, *turns, **fields)


async def test_a_fact_is_packed_with_the_turns_that_it_rests_on(ann: Caller) -> None:
    await talk(ann)
    await ann.remember(fact("Bob watches birds", "m3", "m4", "never-said", id="birds"))
    for fields in ({}, {"kinds": [FACT]}, {"pack_neighbours": 0}):
        assert await spans(ann, "who watches birds", **fields) == [(["birds", "m3", "m4"], ["m3", "m4"])]
    [span] = (await ann.recall("who watches birds", limit=1, pack_tokens=500)).packed.spans
    assert span.text.endswith("]\nBob watches birds\n[8 May 2023]\nBob: a heron by the pond\nBob: how lovely")


async def test_a_turn_is_packed_with_those_around_it(ann: Caller) -> None:
    await talk(ann)
    assert await spans(ann, "heron") == [(["m2", "m3", "m4"], ["m2", "m4"])]
    assert await spans(ann, "heron", pack_neighbours=0) == [(["m3"], [])]
    assert await spans(ann, "heron", pack_neighbours=10) == [(["m1", "m2", "m3", "m4", "m5"], ["m1", "m2", "m4", "m5"])]
    assert await spans(ann, "heron", pack_tokens=13) == [(["m3"], [])]


async def test_what_was_found_is_packed_the_same_with_and_without_what_is_around_it(ann: Caller) -> None:
    for thread in "abcdefgh":
        turns = [said(f"{thread}{n} {word} seen", "Ann", MAY, id=f"{thread}{n}")
                 for n, word in enumerate(["heron", "duck", "swan", "heron"])]  # fmt: skip
        # Indexed, or the answers change while they are compared.
        await ann.append(thread, *turns, consistency=scope_pb2.CONSISTENCY_READ_YOUR_WRITES)
    for tokens in (15, 60, 150, 1_000):
        found = [each for ids, _ in await spans(ann, "heron", limit=9, pack_tokens=tokens, pack_neighbours=0)
                 for each in ids]  # fmt: skip
        for reach in (1, 3):
            more = await spans(ann, "heron", limit=9, pack_tokens=tokens, pack_neighbours=reach)
            assert sorted(each for ids, beside in more for each in ids if each not in beside) == sorted(found)


async def test_what_is_beside_is_allowed_like_what_is_found(memory: Memory, ann: Caller) -> None:
    await talk(ann, scope={"subject": "bob"})
    await ann.remember(fact("Bob watches birds", "m3", id="birds", metadata_json='{"open": true}'))
    whole = [(["birds", "m3"], ["m3"])]
    assert await spans(ann, "who watches birds") == whole
    # Of another subject.
    await ann.remember(fact("Ann watches birds as well", "m3", id="hers"), scope={"subject": "ann"})
    assert await spans(ann, "ann watches birds", scope={"subject": "ann"}) == [(["hers"], [])]
    # Not what a filter asks for.
    says_open = filter_pb2.Filter(exists=filter_pb2.Field(path="metadata.open"))
    assert await spans(ann, "who watches birds", filter=says_open) == [(["birds"], [])]
    # Another tenant's.
    other = memory.caller()
    await other.remember(fact("Bob watches birds", "m3", id="birds"))
    assert await spans(other, "who watches birds") == [(["birds"], [])]
    # Gone.
    gone = pb.ForgetMessagesRequest(scope=scope_pb2.Scope(thread="talk"), message_ids=["m3"])
    await ann.call("ForgetMessages", gone)
    assert await spans(ann, "who watches birds") == [(["birds"], [])]


async def test_what_was_said_later_is_not_beside_what_was_known_before(ann: Caller) -> None:
    await ann.remember(fact("Bob watches birds", "m3", id="birds"))
    await ann.append("walk", said("a kingfisher at last", id="first"))
    now = Timestamp()
    now.CopyFrom((await ann.window("walk")).turns[0].recorded_at)
    await talk(ann)
    await ann.append("walk", said("and a wren", id="second"))
    assert await spans(ann, "who watches birds", recorded_at=now) == [(["birds"], [])]
    assert await spans(ann, "kingfisher", recorded_at=now) == [(["first"], [])]
    assert await spans(ann, "kingfisher") == [(["first", "second"], ["second"])]


async def test_an_erased_persons_words_are_beside_nothing(ann: Caller) -> None:
    await ann.append("talk", said("what did you see", id="m1"), scope={"subject": "ann"})
    await ann.append("talk", said("a heron by the pond", id="m2"), scope={"subject": "bob"})
    await ann.remember(fact("somebody watches birds", "m1", id="birds"))
    assert await spans(ann, "heron") == [(["m1", "m2"], ["m1"])]
    await ann.call("Erase", pb.EraseRequest(scope=scope_pb2.Scope(subject="ann")))
    assert await spans(ann, "heron") == [(["m2"], [])]
    assert await spans(ann, "somebody watches birds") == [(["birds"], [])]


async def test_an_id_that_several_threads_have_is_a_source_where_the_memory_names_the_thread(ann: Caller) -> None:
    await talk(ann)
    await talk(ann, "other")
    await ann.remember(
        fact("Bob watches birds", "m3", id="birds"),
        fact("Bob collects stamps", "m4", id="stamps", scope=scope_pb2.Scope(thread="other")),
    )
    assert await spans(ann, "who watches birds") == [(["birds"], [])]
    assert await spans(ann, "who collects stamps") == [(["stamps", "m4"], ["m4"])]


async def test_many_sources_and_long_ones_are_looked_up_within_bounds(ann: Caller) -> None:
    await ann.append("long", *(said(f"page {n} " + "word " * 40_000, id=f"long{n}") for n in range(8)))
    await talk(ann)
    sources = [f"long{n}" for n in range(8)] + [f"absent{n}" for n in range(55)] + ["m4"]
    await ann.remember(*(fact(f"Bob watches birds of kind {n}", *sources, id=f"birds{n}") for n in range(20)))
    answer = await ann.recall("who watches birds", limit=20, kinds=[FACT], pack_tokens=1_000)
    context = [each for span in answer.packed.spans for each in span.context_ids]
    assert context == ["m4"]
    assert answer.packed.tokens <= 1_000
