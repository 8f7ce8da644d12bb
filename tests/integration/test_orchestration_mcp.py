"""Runs whose tools are an MCP server's."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import grpc
import pytest
from tests.fakes.mcp_shop import Shop, is_alive
from tests.fakes.orchestration_service import (
    Caller,
    Orchestration,
    all_events,
    assert_pairs,
    eventually,
    kinds,
    running,
    until_kind,
)
from tests.fakes.peers.inference_peer import InferencePeer
from tests.fakes.tool_worker import dialled, tool, worker

from janus_api.common.v1 import status_service_pb2, status_service_pb2_grpc
from janus_api.orchestration.v1 import agent_pb2
from janus_api.tools.v1 import tool_worker_service_pb2 as tools_pb
from janus_kit.channel import connect
from janus_kit.errors import FailedPrecondition, InvalidArgument
from janus_kit.rpc_errors import from_rpc
from janus_kit.settings import SettingsError
from janus_kit.telemetry import logging
from janus_orchestration import app

ALONE = agent_pb2.MemoryPolicy(recall_limit=0, do_not_store=True)


@pytest.fixture
async def service(own_url: str, redis_url: str, peer: InferencePeer, shop: Shop) -> AsyncIterator[Orchestration]:
    servers = {
        "shop": shop.stdio(),
        "theirs": shop.stdio(tenants=("somebody",)),
        "gone": {"url": "http://127.0.0.1:1/mcp"},
    }
    async with running(own_url, redis_url, inference_target=peer.target, mcp_servers=servers) as serving:
        yield serving
    assert not [line["pid"] for line in shop.saw("started") if is_alive(line["pid"])]


@pytest.fixture
def logs() -> Iterator[io.StringIO]:
    """What is logged."""
    written = io.StringIO()
    logging.configure(stream=written)
    yield written
    logging.configure()


async def ready(ann: Caller, *names: str) -> str:
    return await ann.ready(memory=ALONE, tools=[agent_pb2.AgentTool(name=name) for name in names])


def results(message: Any) -> list[tuple[str, bool]]:
    told = [part.tool_result for part in message.parts]
    return [("".join(part.text for part in result.parts), result.is_error) for result in told]


async def test_a_run_calls_a_servers_tools_and_the_model_gets_the_answers(
    service: Orchestration, ann: Caller, peer: InferencePeer, shop: Shop
) -> None:
    thread = await ready(ann, "shop.price", "shop.brew")
    stream = ann.converse(thread)
    asked = await peer.call()
    assert [(tool.name, tool.description) for tool in asked.prompt.tools] == [
        ("shop.price", "What an item costs."),
        ("shop.brew", "Brews a cup."),
    ]
    asked.tools(
        ("c1", "shop.brew", '{"item": "tea"}'),
        ("c2", "shop.price", '{"item": 7}'),
        ("c3", "shop.reserve", '{"item": "tea"}'),
    )
    (await peer.call()).answer("done")
    assert kinds(await all_events(stream))[-1] == "run_completed"
    history = await ann.messages(thread)
    assert_pairs(history)
    assert results(history[2]) == [
        ("a cup of tea", False),
        ("the arguments do not hold to the tool's schema: $.item: must be string", True),
        ("there is no tool named 'shop.reserve'", True),
    ]
    assert len(shop.saw("brew")) == 1
    assert not shop.saw("price")
    assert not shop.saw("reserve")


async def test_an_agent_may_have_only_tools_that_its_servers_offer(service: Orchestration, ann: Caller) -> None:
    with pytest.raises(Exception, match="must name a tool") as raised:
        await ready(ann, "shop.brew", "shop.fly", "gone.brew", "nowhere.brew")
    error = from_rpc(raised.value)  # type: ignore[arg-type]
    assert isinstance(error, InvalidArgument)
    assert [field for field, _ in error.violations] == [f"agent.tools[{place}].name" for place in (1, 2, 3)]


async def refusal(service: Orchestration, tenant: str, *tools: str) -> FailedPrecondition:
    """Why a worker of these tools may not register."""
    async with dialled(service.address, tenant) as refused:
        await refused.say(register=tools_pb.Register(worker_id="w", tools=map(tool, tools), credits=1))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await refused.next()
    error = from_rpc(raised.value)
    assert isinstance(error, FailedPrecondition)
    return error


async def test_a_worker_may_not_offer_what_a_server_offers(service: Orchestration, ann: Caller) -> None:
    error = await refusal(service, ann.tenant, "shop.fly", "shop.brew", "shop.price")
    assert (error.reason, dict(error.metadata)) == ("STATE_CONFLICT", {"tools": "shop.brew,shop.price"})
    assert error.message == "no worker may offer 'shop.brew', 'shop.price', which the MCP server 'shop' offers"
    # Nothing of a refused registration is known.
    with pytest.raises(grpc.aio.AioRpcError, match="must name a tool"):
        await ready(ann, "shop.fly")
    # A server of other tenants is none, and one that was never there offers nothing.
    async with worker(service.address, ann.tenant, tool("shop.fly"), tool("theirs.brew"), tool("gone.brew")):
        await ready(ann, "shop.fly", "theirs.brew", "gone.brew")


async def test_a_server_that_offers_a_name_later_takes_it_from_the_worker_and_the_log_says_so(
    service: Orchestration, ann: Caller, peer: InferencePeer, logs: io.StringIO
) -> None:
    async with worker(service.address, ann.tenant, tool("shop.taught"), tool("count"), worker_id="bob") as bob:
        thread = await ready(ann, "shop.taught", "shop.learn", "count")
        stream = ann.converse(thread)
        (await peer.call()).tools(("c1", "shop.learn"))

        async def is_logged() -> bool:
            return "worker_tools_hidden" in logs.getvalue()

        await eventually(is_logged, 60)
        (line,) = (line for line in logs.getvalue().splitlines() if "worker_tools_hidden" in line)
        assert '"bob"' in line
        assert '["shop.taught"]' in line
        assert (await refusal(service, ann.tenant, "shop.taught")).metadata == {"tools": "shop.taught"}
        (await peer.call()).answer("learnt")
        await all_events(stream)

        stream = ann.converse(thread)
        (await peer.call()).tools(("c2", "shop.taught"), ("c3", "count", '{"n": 1}'))
        call = await bob.given()
        assert call.tool == "count"
        await bob.answer(call, "one")
        (await peer.call()).answer("done")
        assert kinds(await all_events(stream))[-1] == "run_completed"
        assert results((await ann.messages(thread))[-2]) == [("taught", False), ("one", False)]


async def test_progress_is_told_and_a_cancelled_run_ends_the_servers_work(
    service: Orchestration, ann: Caller, peer: InferencePeer, shop: Shop
) -> None:
    thread = await ready(ann, "shop.steps", "shop.slow")
    stream = ann.converse(thread)
    (await peer.call()).tools(("c1", "shop.steps"), ("c2", "shop.slow", '{"seconds": 300}'))
    seen = await until_kind(stream, "tool_call_progress")
    progress = seen[-1].tool_call_progress
    assert (progress.call_id, progress.fraction, progress.message) == ("c1", 0.25, "begun")
    await shop.until("slow began")
    await ann.cancel(seen[0].run_id)
    await all_events(ann.watch(seen[0].run_id))
    await shop.until("slow cancelled")
    assert_pairs(await ann.messages(thread))


async def test_a_person_is_asked_about_a_call_that_took_its_server_down(
    service: Orchestration, ann: Caller, peer: InferencePeer, shop: Shop
) -> None:
    thread = await ready(ann, "shop.die_once")
    stream = ann.converse(thread)
    (await peer.call()).tools(("c1", "shop.die_once"))
    event = (await until_kind(stream, "approval_requested"))[-1]
    run_id, approval = event.run_id, event.approval_requested.approval
    assert len(shop.saw("die_once")) == 1
    await ann.decide(run_id, approval.approval_id)
    again = (await until_kind(stream, "approval_requested"))[-1].approval_requested.approval
    assert len(shop.saw("die_once")) == 2
    await ann.decide(run_id, again.approval_id, approve=False)
    (await peer.call()).answer("done")
    assert kinds(await ann.watched(run_id))[-1] == "run_completed"
    assert_pairs(await ann.messages(thread))


async def test_a_server_that_is_away_degrades_the_service_and_says_so(service: Orchestration) -> None:
    async with connect(service.address) as channel:
        stub = status_service_pb2_grpc.StatusServiceStub(channel)

        async def is_told() -> bool:
            answer = await stub.GetStatus(status_service_pb2.GetStatusRequest(), timeout=10)
            parts = {part.name: part.available for each in answer.services for part in each.parts}
            return (parts["mcp-shop"], parts["mcp-gone"]) == (True, False)

        await eventually(is_told, 60)


async def test_tools_of_a_server_that_is_away_are_known_after_a_restart(
    own_url: str, redis_url: str, peer: InferencePeer, shop: Shop
) -> None:
    def served(**settings: Any) -> Any:
        servers = {"shop": shop.http(longest_retry_s=0.3, **settings)}
        return running(own_url, redis_url, inference_target=peer.target, mcp_servers=servers)

    async def is_on_record() -> bool:
        connection = await asyncpg.connect(own_url)
        try:
            return bool(await connection.fetchval("SELECT count(*) FROM orchestration.mcp_server"))
        finally:
            await connection.close()

    async with shop.serving(), served(tenants=("ann",)) as service:
        await ready(service.caller("ann"), "shop.brew")
        await eventually(is_on_record)

    async with served(tenants=("ann",)) as service:
        ann = service.caller("ann")
        thread = await ready(ann, "shop.brew", "shop.reserve")
        # Who may use it is in the settings, whatever is on record.
        with pytest.raises(grpc.aio.AioRpcError, match="must name a tool"):
            await ready(service.caller("bob"), "shop.brew")
        with pytest.raises(grpc.aio.AioRpcError, match="must name a tool"):
            await ready(ann, "shop.fly")

        stream = ann.converse(thread)
        (await peer.call()).tools(("c1", "shop.brew", '{"item": "tea"}'))
        (await peer.call()).answer("done")
        await all_events(stream)
        assert results((await ann.messages(thread))[-2]) == [("the tool's server 'shop' is not connected", True)]

        waits = [agent_pb2.AgentTool(name="shop.brew", when_no_worker=agent_pb2.WHEN_NO_WORKER_WAIT)]
        thread = await ann.ready(memory=ALONE, tools=waits)
        stream = ann.converse(thread)
        (await peer.call()).tools(("c1", "shop.brew", '{"item": "tea"}'))
        async with shop.serving():
            (await peer.call()).answer("done")
            await all_events(stream)
        assert results((await ann.messages(thread))[-2]) == [("a cup of tea", False)]

    # What was said under other settings is not believed.
    async with served(tools={"brew": {"side_effect": "read_only"}}) as service:
        with pytest.raises(grpc.aio.AioRpcError, match="must name a tool"):
            await ready(service.caller("ann"), "shop.brew")


async def test_servers_without_the_package_are_refused_at_the_start(
    postgres_url: str, redis_url: str, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "is_installed", lambda: False)
    with pytest.raises(SettingsError, match=r"orchestration.mcp_servers: needs the packages of janus-mesh\[mcp\]"):
        async with running(postgres_url, redis_url, mcp_servers={"shop": shop.stdio()}):
            pass
