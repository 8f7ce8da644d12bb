"""Core memory over gRPC: small named texts, changed by compare-and-set."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from tests.fakes.memory_service import Caller, Memory, refused, running

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import record_pb2, scope_pb2, space_pb2
from janus_kit.errors import Aborted, InvalidArgument, NotFound

# One service for all tests: each has a tenant of its own.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def memory(postgres_url: str, redis_url: str) -> AsyncIterator[Memory]:
    async with running(postgres_url, redis_url, indexer=False) as service:
        yield service


@pytest.fixture
def ann(memory: Memory) -> Caller:
    return memory.caller()


async def put(ann: Caller, name: str, text: str, version: int = 0, request_id: str = "", **fields: Any) -> Any:
    block = record_pb2.Block(name=name, text=text, **fields)
    request = pb.PutBlockRequest(block=block, expected_version=version, request_id=request_id)
    return (await ann.call("PutBlock", request)).block


async def get(ann: Caller, name: str, **scope: str) -> record_pb2.Block:
    request = pb.GetBlockRequest(scope=scope_pb2.Scope(**scope), name=name)
    return (await ann.call("GetBlock", request)).block  # type: ignore[no-any-return]


async def test_a_block_comes_back_as_it_was_put(ann: Caller) -> None:
    made = await put(ann, "persona", "kind and brief", description="who I am", scope=scope_pb2.Scope(agent="helper"))
    assert (made.version, made.size_limit, made.scope.space) == (1, 4_096, "default")
    assert await get(ann, "persona", agent="helper") == made
    changed = await put(ann, "persona", "", 1, size_limit=10, scope=scope_pb2.Scope(agent="helper"))
    assert (changed.version, changed.text, changed.size_limit, changed.description) == (2, "", 10, "")
    assert await get(ann, "persona", agent="helper") == changed


async def test_a_block_is_of_exactly_its_scope(ann: Caller) -> None:
    for subject in ("", "bob", "eve"):
        await put(ann, "human", f"of {subject}", scope=scope_pb2.Scope(subject=subject))
    assert (await get(ann, "human")).text == "of "
    assert (await get(ann, "human", subject="eve")).text == "of eve"
    for scope in ({"subject": "bob", "agent": "helper"}, {"subject": "joe"}):
        assert isinstance(await refused(get(ann, "human", **scope)), NotFound)


async def test_a_block_of_another_version_is_not_overwritten(ann: Caller) -> None:
    await put(ann, "human", "one")
    await put(ann, "human", "two", 1)
    for version in (0, 1, 7):
        error = await refused(put(ann, "human", "three", version))
        assert isinstance(error, Aborted)
        assert (error.reason, error.metadata["current_version"]) == ("VERSION_MISMATCH", "2")
    error = await refused(put(ann, "other", "three", 1))
    assert error.metadata["current_version"] == "0"
    assert (await get(ann, "human")).text == "two"


async def test_of_writers_at_the_same_time_one_wins(ann: Caller) -> None:
    for version in (0, 1):
        answers = await asyncio.gather(
            *(put(ann, "human", f"by {n}", version) for n in range(6)), return_exceptions=True
        )
        [won] = [answer for answer in answers if isinstance(answer, record_pb2.Block)]
        assert await get(ann, "human") == won
        assert won.version == version + 1


async def test_a_put_with_the_same_request_id_is_made_once(ann: Caller) -> None:
    first = await put(ann, "human", "one", request_id="r")
    await put(ann, "human", "two", 1)
    assert await put(ann, "human", "one", request_id="r") == first
    assert (await refused(put(ann, "human", "three", request_id="r"))).reason == "REQUEST_ID_REUSED"
    assert (await get(ann, "human")).text == "two"


async def test_a_size_is_counted_in_characters(ann: Caller) -> None:
    await put(ann, "human", "ä🦢" * 5, size_limit=10)
    error = await refused(put(ann, "human", "ä🦢" * 5 + "x", 1, size_limit=10))
    assert isinstance(error, InvalidArgument)
    assert error.violations[0].field == "block.text"
    await put(ann, "large", "x" * 65_536, size_limit=65_536)
    assert isinstance(await refused(put(ann, "default", "x" * 4_097)), InvalidArgument)


async def test_blocks_are_listed_by_name_with_the_scope_as_a_filter(ann: Caller) -> None:
    await ann.call("PutSpace", pb.PutSpaceRequest(space=space_pb2.Space(name="s")))
    await put(ann, "elsewhere", "", scope=scope_pb2.Scope(space="s"))
    for name in ("b", "_a", "a-1"):
        for subject in ("bob", "eve"):
            await put(ann, name, f"{name} of {subject}", scope=scope_pb2.Scope(subject=subject))

    async def listed(**scope: str) -> list[str]:
        found, token = [], ""
        while True:
            request = pb.ListBlocksRequest(scope=scope_pb2.Scope(**scope), page_size=2, page_token=token)
            page = await ann.call("ListBlocks", request)
            found += [f"{block.name}/{block.scope.subject}" for block in page.blocks]
            token = page.next_page_token
            if not token:
                return found

    assert await listed(subject="eve") == ["_a/eve", "a-1/eve", "b/eve"]
    assert await listed() == ["_a/bob", "_a/eve", "a-1/bob", "a-1/eve", "b/bob", "b/eve"]
    assert await listed(space="s") == ["elsewhere/"]
    assert await listed(agent="helper") == []


async def test_a_page_of_large_blocks_is_one_that_any_client_can_receive(ann: Caller) -> None:
    for place in range(20):
        await put(ann, f"b{place}", "🦢" * 65_536, size_limit=65_536)
    page = await ann.call("ListBlocks", pb.ListBlocksRequest())
    assert 1 < len(page.blocks) < 20
    assert page.next_page_token


async def test_another_tenants_blocks_are_as_if_they_had_never_been(memory: Memory, ann: Caller) -> None:
    bob = memory.caller()
    await put(ann, "human", "secret")
    error, same = await refused(get(bob, "human")), await refused(get(bob, "never"))
    assert isinstance(error, NotFound)
    assert error.message.replace("human", "never") == same.message
    assert not (await bob.call("ListBlocks", pb.ListBlocksRequest())).blocks
    assert (await put(bob, "human", "bob's")).version == 1
    assert (await get(ann, "human")).text == "secret"
