"""ForgetMessages: turns out of a thread, its window, every search and the statistics."""

from __future__ import annotations

import asyncpg
import pytest
from tests.fakes.memory_service import Caller, Memory, refused, said, texts
from tests.fakes.memory_statistics import CURRENT, counted, kept

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import scope_pb2
from janus_kit.errors import InvalidArgument, NotFound


@pytest.fixture
def ann(memory: Memory) -> Caller:
    return memory.caller()


def forgetting(*ids: str, thread: str = "t", **fields: object) -> pb.ForgetMessagesRequest:
    return pb.ForgetMessagesRequest(scope=scope_pb2.Scope(thread=thread), message_ids=ids, **fields)  # type: ignore[arg-type]


async def test_turns_go_from_window_search_and_statistics(ann: Caller, owner: asyncpg.Connection) -> None:
    await ann.append("t", said("the kettle is blue", id="a"), said("the heron is grey", id="b"), said("yes", id="c"))
    await ann.append("other", said("the heron stays", id="b"))
    await ann.indexed()
    assert (await ann.call("ForgetMessages", forgetting("b", "never-was"))).removed == 1
    assert texts(await ann.window("t")) == ["the kettle is blue", "yes"]
    found = texts(await ann.recall("heron"))
    assert "the heron stays" in found, "the same id in another thread is another turn"
    assert "the heron is grey" not in found
    await ann.indexed()
    assert await kept(owner, ann.tenant) == await counted(owner, ann.tenant, CURRENT)
    left = await owner.fetchval(
        "SELECT count(*) FROM memory.vector v WHERE v.tenant = $1 AND NOT EXISTS (SELECT FROM memory.unit u "
        "WHERE u.tenant = v.tenant AND u.space_no = v.space_no AND u.unit = v.unit)",
        ann.tenant,
    )
    assert left == 0
    # What comes next goes on after the thread's end.
    await ann.append("t", said("and now?", id="d"))
    assert texts(await ann.window("t")) == ["the kettle is blue", "yes", "and now?"]


async def test_forgetting_twice_is_forgetting_once(ann: Caller) -> None:
    await ann.append("t", said("one", id="a"), said("two", id="b"))
    first = await ann.call("ForgetMessages", forgetting("a", request_id="r"))
    assert await ann.call("ForgetMessages", forgetting("a", request_id="r")) == first
    assert first.removed == 1
    assert (await ann.call("ForgetMessages", forgetting("a"))).removed == 0
    assert (await refused(ann.call("ForgetMessages", forgetting("b", request_id="r")))).reason == "REQUEST_ID_REUSED"
    # An append that arrives late is answered as it was the first time, and brings nothing back.
    await ann.append("late", said("gone", id="g"), request_id="once")
    await ann.call("ForgetMessages", forgetting("g", thread="late"))
    await ann.append("late", said("gone", id="g"), request_id="once")
    assert texts(await ann.window("late")) == []


async def test_nobody_forgets_for_another_tenant(memory: Memory, ann: Caller) -> None:
    await ann.append("t", said("mine", id="a"))
    assert (await memory.caller().call("ForgetMessages", forgetting("a"))).removed == 0
    assert texts(await ann.window("t")) == ["mine"]


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (pb.ForgetMessagesRequest(message_ids=["a"]), ["scope.thread"]),
        (forgetting(), ["message_ids"]),
        (forgetting(*["a"] * 257), ["message_ids"]),
        (forgetting("a", "/"), ["message_ids[1]"]),
        (forgetting("a", request_id="!"), ["request_id"]),
        (
            pb.ForgetMessagesRequest(scope=scope_pb2.Scope(thread="t", subject="s", agent="a"), message_ids=["a"]),
            ["scope.subject", "scope.agent"],
        ),
    ],
)
async def test_bad_input_names_its_fields(ann: Caller, request_: pb.ForgetMessagesRequest, fields: list[str]) -> None:
    error = await refused(ann.call("ForgetMessages", request_))
    assert isinstance(error, InvalidArgument)
    assert [violation.field for violation in error.violations] == fields


async def test_a_space_that_is_not_there_is_not_found(ann: Caller) -> None:
    request = pb.ForgetMessagesRequest(scope=scope_pb2.Scope(space="attic", thread="t"), message_ids=["a"])
    assert isinstance(await refused(ann.call("ForgetMessages", request)), NotFound)
