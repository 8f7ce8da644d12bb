"""Workers, replicas and owners as processes that die, freeze and come back: nothing runs twice that must not."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import uuid
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.conftest import StackThread
from tests.fakes.orchestration_service import (
    Caller,
    Process,
    all_events,
    assert_pairs,
    check,
    eventually,
    kinds,
    processes,
    running,
    until_kind,
)
from tests.fakes.peers.inference_peer import InferencePeer
from tests.fakes.tcp_proxy import TcpProxy
from tests.fakes.tool_worker import tool, worker
from tests.fakes.worker_process import WorkerProcess

from janus_api.content.v1 import message_pb2 as content
from janus_api.orchestration.v1 import agent_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_api.tools.v1 import tool_worker_service_pb2 as tools_pb
from janus_kit.rpc_errors import from_rpc
from janus_worker import Refused, Worker

ALONE = agent_pb2.MemoryPolicy(recall_limit=0, do_not_store=True)
TOOLS = ("once", "again", "on_a_thread", "broken")
LEASE_S = 2.5
EXAMPLES = Path(__file__).parents[2] / "deploy" / "workers"


@asynccontextmanager
async def replicas(count: int, url: str, redis_url: str, peer: InferencePeer) -> AsyncIterator[list[Process]]:
    async with processes(count, url, redis_url, inference_target=peer.target, worker_lease_s=LEASE_S) as found:
        yield found


@asynccontextmanager
async def serving(target: str, tenant: str, marks: Path, worker_id: str = "proc") -> AsyncIterator[WorkerProcess]:
    made = WorkerProcess(target, tenant, marks, worker_id)
    try:
        yield made
    finally:
        await made.stop()


async def ready(
    caller: Caller,
    names: tuple[str, ...] = TOOLS,
    when_no_worker: agent_pb2.WhenNoWorker.ValueType = agent_pb2.WHEN_NO_WORKER_WAIT,
) -> str:
    """A thread of an agent with these tools, as soon as their worker has registered them."""
    tools = [agent_pb2.AgentTool(name=name, when_no_worker=when_no_worker) for name in names]

    async def put() -> bool:
        try:
            await caller.agent(memory=ALONE, tools=tools)
        except grpc.aio.AioRpcError as error:
            if from_rpc(error).reason != "FIELD_INVALID":
                raise
            return False
        return True

    await eventually(put, 20)
    return await caller.thread()


def asking(call_id: str, name: str, **arguments: Any) -> tuple[str, str, str]:
    return call_id, name, json.dumps(arguments)


def told(message: content.Message) -> list[tuple[str, bool]]:
    results = [part.tool_result for part in message.parts]
    return [("".join(part.text for part in result.parts), result.is_error) for result in results]


async def begun(process: WorkerProcess, word: str) -> None:
    async def has_begun() -> bool:
        return f"{word}-begun" in process.marks

    await eventually(has_begun, 20)


async def test_functions_are_called_and_what_they_raise_is_told_as_it_should_be(
    own_url: str, redis_url: str, peer: InferencePeer, tmp_path: Path
) -> None:
    async with running(own_url, redis_url, inference_target=peer.target) as service:
        ann = service.caller()
        async with serving(service.address, ann.tenant, tmp_path / "marks") as process:
            thread = await ready(ann)
            stream = ann.converse(thread)
            (await peer.call()).tools(
                asking("c1", "once", word="a", seconds=0.5),
                asking("c2", "on_a_thread"),
                asking("c3", "broken", how="told"),
                asking("c4", "broken", how="large"),
                asking("c5", "broken", how="badly"),
                asking("c6", "on_a_thread", how="stops"),
                asking("c7", "on_a_thread", how="quits"),
                asking("c8", "once", word=7),
            )
            (await peer.call()).answer("done")
            events = await all_events(stream)
            assert [event.tool_call_progress.message for event in events if event.HasField("tool_call_progress")] == [
                "half"
            ]
            answers = told((await ann.messages(thread))[2])
            assert answers[:7] == [
                ("a is done", False),
                ("from a thread", False),
                ("this is for the model", True),
                ("the tool ran, but its result is too large", True),
                *[("INTERNAL: the tool failed", True)] * 3,
            ]
            assert "$.word: must be string" in answers[7][0]
            process.signal(signal.SIGTERM)
            assert await process.ended() == 0


async def test_a_worker_that_is_asked_to_stop_finishes_what_it_has(
    own_url: str, redis_url: str, peer: InferencePeer, tmp_path: Path
) -> None:
    async with running(own_url, redis_url, inference_target=peer.target) as service:
        ann = service.caller()
        async with serving(service.address, ann.tenant, tmp_path / "marks") as process:
            thread = await ready(ann)
            stream = ann.converse(thread)
            (await peer.call()).tools(asking("c1", "once", word="a", seconds=1))
            await begun(process, "a")
            process.signal(signal.SIGTERM)
            (await peer.call()).answer("done")
            assert kinds(await all_events(stream))[-1] == "run_completed"
            assert told((await ann.messages(thread))[2]) == [("a is done", False)]
            assert await process.ended() == 0
            assert process.marks == ["a-begun", "a-done"]


@pytest.mark.parametrize("name", ["once", "again"])
async def test_a_replica_that_is_killed_takes_no_call_with_it(
    own_url: str, redis_url: str, peer: InferencePeer, tmp_path: Path, name: str
) -> None:
    """The run's owner, the worker's connection and the client's stream die at once."""
    async with replicas(2, own_url, redis_url, peer) as (first, second):
        tenant = f"t{uuid.uuid4().hex[:12]}"
        before, after = first.caller(tenant), second.caller(tenant)
        target = f"ipv4:{first.address},{second.address}"
        # The worker goes to the first replica as long as there is one.
        second.signal(signal.SIGSTOP)
        async with serving(target, tenant, tmp_path / "marks") as process:
            thread = await ready(before)
            stream = before.converse(thread)
            (await peer.call()).tools(asking("c1", name, word="a", seconds=1))
            await begun(process, "a")
            second.signal(signal.SIGCONT)
            seen = await until_kind(stream, "tool_call_started")
            first.kill()
            (await peer.call()).answer("done")
            rest = await after.watched(seen[0].run_id, seen[-1].cursor)
            check([*seen, *rest], after=0)
            assert kinds(rest)[-1] == "run_completed"
            history = await after.messages(thread)
            assert_pairs(history)
            (answer,) = told(history[2])
            assert answer == (("a is done, try 1" if name == "again" else "a is done"), False)
            assert process.marks == ["a-begun", "a-done"], "it ran once, though its try lasted over two connections"
            assert [step.attempts for step in (await after.run(seen[0].run_id)).steps] == [1, 1, 1]


@pytest.mark.parametrize("name", ["once", "again"])
async def test_an_owner_that_is_killed_leaves_the_call_where_it_is(
    own_url: str, redis_url: str, peer: InferencePeer, tmp_path: Path, name: str
) -> None:
    """A worker that is connected to one replica serves the runs of another, whoever owns them."""
    async with replicas(2, own_url, redis_url, peer) as (owner, other):
        tenant = f"t{uuid.uuid4().hex[:12]}"
        before, after = owner.caller(tenant), other.caller(tenant)
        async with serving(other.address, tenant, tmp_path / "marks") as process:
            thread = await ready(after)
            stream = before.converse(thread)
            (await peer.call()).tools(asking("c1", name, word="a", seconds=2))
            seen = await until_kind(stream, "tool_call_started")
            await begun(process, "a")
            owner.kill()
            (await peer.call()).answer("done")
            rest = await after.watched(seen[0].run_id, seen[-1].cursor)
            assert kinds(rest)[-1] == "run_completed"
            started = [event.tool_call_started for event in [*seen, *rest] if event.HasField("tool_call_started")]
            # The next owner says again who has it, as the same try.
            assert [(each.call_id, each.worker_id, each.attempt) for each in started] == [
                ("c1", started[0].worker_id, 1)
            ] * 2
            (answer,) = told((await after.messages(thread))[2])
            assert answer == (("a is done, try 1" if name == "again" else "a is done"), False)
            assert process.marks == ["a-begun", "a-done"]
            assert [step.attempts for step in (await after.run(seen[0].run_id)).steps] == [1, 1, 1]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_worker_that_dies_or_freezes_has_its_calls_judged_by_what_they_do(
    own_url: str, redis_url: str, peer: InferencePeer, tmp_path: Path, how: signal.Signals
) -> None:
    async with running(own_url, redis_url, inference_target=peer.target, worker_lease_s=LEASE_S) as service:
        ann = service.caller()
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(serving(service.address, ann.tenant, tmp_path / "one", "one"))
            thread = await ready(ann)
            stream = ann.converse(thread)
            (await peer.call()).tools(
                asking("c1", "once", word="a", seconds=30), asking("c2", "again", word="b", seconds=0.5)
            )
            await begun(first, "a")
            await begun(first, "b")
            first.signal(how)
            second = await stack.enter_async_context(serving(service.address, ann.tenant, tmp_path / "two", "two"))
            asked = (await until_kind(stream, "approval_requested"))[-1]
            await ann.decide(asked.run_id, asked.approval_requested.approval.approval_id, approve=False)
            (await peer.call()).answer("done")
            assert kinds(await all_events(stream))[-1] == "run_completed"
            answers = told((await ann.messages(thread))[2])
            assert answers[1] == ("b is done, try 2", False)
            assert answers[0][1]
            assert "whether it did anything is not known" in answers[0][0]
            assert second.marks == ["b-begun", "b-done"]
            if how is signal.SIGSTOP:
                # It wakes, comes back, and learns that nobody waits.
                first.signal(signal.SIGCONT)
                stream = ann.converse(thread, "again")
                second.signal(signal.SIGTERM)
                assert await second.ended() == 0
                (await peer.call()).tools(asking("c3", "once", word="c"))
                (await peer.call()).answer("done")
                assert kinds(await all_events(stream))[-1] == "run_completed"
                assert "a-done" not in first.marks
                assert first.marks[-1] == "c-done"


async def test_the_only_worker_may_start_anew_and_gets_its_call_again(
    own_url: str, redis_url: str, peer: InferencePeer, tmp_path: Path
) -> None:
    async with running(own_url, redis_url, inference_target=peer.target) as service:
        ann = service.caller()
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(serving(service.address, ann.tenant, tmp_path / "one"))
            thread = await ready(ann, when_no_worker=agent_pb2.WHEN_NO_WORKER_UNSPECIFIED)
            stream = ann.converse(thread)
            (await peer.call()).tools(asking("c1", "again", word="a", seconds=1))
            await begun(first, "a")
            first.signal(signal.SIGKILL)
            await first.ended()
            second = await stack.enter_async_context(serving(service.address, ann.tenant, tmp_path / "two"))
            (await peer.call()).answer("done")
            assert kinds(await all_events(stream))[-1] == "run_completed"
            assert told((await ann.messages(thread))[2]) == [("a is done, try 2", False)]
            assert first.marks == ["a-begun"]
            assert second.marks == ["a-begun", "a-done"]
            assert len(first.keys) == 1
            assert first.keys == second.keys, "it is the same call"


async def test_an_outage_of_postgres_loses_no_call_and_fails_no_run(
    own_stack: StackThread, peer: InferencePeer, tmp_path: Path
) -> None:
    addresses = own_stack.addresses
    async with running(
        addresses.postgres_url, addresses.redis_url, inference_target=peer.target, worker_lease_s=LEASE_S
    ) as service:
        ann = service.caller()
        async with serving(service.address, ann.tenant, tmp_path / "marks") as process:
            thread = await ready(ann)
            stream = ann.converse(thread)
            (await peer.call()).tools(
                asking("c1", "once", word="a", seconds=1), asking("c2", "again", word="b", seconds=8)
            )
            await begun(process, "a")
            await begun(process, "b")
            own_stack.kill("postgres")
            (await peer.call_within(60)).answer("done")
            assert kinds(await all_events(stream))[-1] == "run_completed"
            assert told((await ann.messages(thread))[2]) == [("a is done", False), ("b is done, try 1", False)]
            assert sorted(process.marks) == ["a-begun", "a-done", "b-begun", "b-done"]


async def test_a_worker_that_the_server_will_never_take_says_why(own_url: str, redis_url: str) -> None:
    async with running(own_url, redis_url) as service:
        refused = Worker(service.address, tenant="t")

        @refused.tool(name="memory.mine")
        async def mine() -> None: ...

        with pytest.raises(Refused, match=r"INVALID_ARGUMENT: register\.tools\[0\]\.name: must not begin with"):
            await asyncio.wait_for(refused.serve(), 10)


async def test_a_worker_waits_for_others_of_another_kind_to_go(own_url: str, redis_url: str) -> None:
    async with running(own_url, redis_url) as service:
        ann = service.caller()
        later = Worker(service.address, tenant=ann.tenant)

        @later.tool(name="count", side_effect="read_only")
        async def count() -> int:
            return 1

        async with worker(service.address, ann.tenant, tool("count", side_effect=tools_pb.SIDE_EFFECT_IDEMPOTENT)):
            serving_it = asyncio.create_task(later.serve())
            await asyncio.sleep(0.3)
            assert not serving_it.done()

        async def is_taken() -> bool:
            try:
                async with worker(service.address, ann.tenant, tool("count")):
                    return False
            except grpc.aio.AioRpcError as error:
                return from_rpc(error).reason == "STATE_CONFLICT"

        await eventually(is_taken)
        later.stop()
        await asyncio.wait_for(serving_it, 10)
        agents = await ann.call("ListAgents", pb.ListAgentsRequest())
        assert not agents.agents


def example(language: str) -> list[str]:
    """The command of an example worker."""
    if language == "python":
        return [sys.executable, str(EXAMPLES / "python" / "worker.py")]
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not on this machine")
    if not (EXAMPLES / "node" / "node_modules").is_dir():
        pytest.skip("the example's packages are not installed: make example-node does that")
    return [node, str(EXAMPLES / "node" / "worker.js")]


@asynccontextmanager
async def example_process(
    command: list[str], environ: dict[str, str], **streams: Any
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(*command, env=environ, **streams)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("language", ["python", "node"])
async def test_an_example_worker_does_what_its_tools_say(
    own_url: str, redis_url: str, peer: InferencePeer, language: str
) -> None:
    command = example(language)
    async with running(own_url, redis_url, inference_target=peer.target) as service:
        ann = service.caller()
        environ = {**os.environ, "JANUS_TARGET": service.address, "JANUS_TENANT": ann.tenant}
        async with example_process(command, environ) as process:
            thread = await ready(ann, ("shop.stock", "shop.reserve", "shop.brew"))
            stream = ann.converse(thread)
            (await peer.call()).tools(
                asking("c1", "shop.reserve", item="coffee"),
                asking("c2", "shop.brew", item="tea"),
                asking("c3", "shop.stock", item="milk"),
            )
            (await peer.call()).tools(asking("c4", "shop.stock", item="coffee"))
            (await peer.call()).answer("enjoy")
            events = await all_events(stream)
            assert kinds(events)[-1] == "run_completed"
            shares = [event.tool_call_progress.fraction for event in events if event.HasField("tool_call_progress")]
            assert shares
            assert shares == sorted(shares)
            history = await ann.messages(thread)
            reserved, brewed, missing = told(history[2])
            assert reserved == ("one coffee is put aside", False)
            assert json.loads(brewed[0])["cup"] == "tea"
            assert missing == ("we do not sell milk", True)
            assert told(history[4]) == [("4", False)]
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 20) == 0


@pytest.mark.parametrize("language", ["python", "node"])
async def test_an_example_worker_that_was_cut_off_comes_back_with_what_it_did(
    own_url: str, redis_url: str, peer: InferencePeer, language: str
) -> None:
    command = example(language)
    async with running(own_url, redis_url, inference_target=peer.target) as service:
        ann = service.caller()
        with closing(TcpProxy.to(f"grpc://{service.address}")) as proxy:
            environ = {**os.environ, "JANUS_TARGET": f"127.0.0.1:{proxy.port}", "JANUS_TENANT": ann.tenant}
            async with example_process(command, environ):
                stream = ann.converse(await ready(ann, ("shop.brew",)))
                (await peer.call()).tools(asking("c1", "shop.brew", item="tea"))
                seen = await until_kind(stream, "tool_call_progress")
                proxy.cut()
                await asyncio.sleep(1)
                proxy.mend()
                (await peer.call()).answer("enjoy")
                events = [*seen, *await rest_of(stream)]
                check(events)
                (completed,) = [event.tool_call_completed for event in events if event.HasField("tool_call_completed")]
                assert json.loads(completed.result.parts[0].text)["cup"] == "tea"
                attempts = [event.tool_call_started.attempt for event in events if event.HasField("tool_call_started")]
                assert attempts == [1]


async def test_the_example_workers_in_python_and_node_offer_the_same_tools(own_url: str, redis_url: str) -> None:
    one, other = example("python"), example("node")
    async with running(own_url, redis_url) as service:
        ann = service.caller()
        environ = {**os.environ, "JANUS_TARGET": service.address, "JANUS_TENANT": ann.tenant}
        async with example_process(one, environ):
            await ready(ann, ("shop.stock", "shop.reserve", "shop.brew"))
            async with example_process(other, environ, stdout=PIPE) as process:
                assert process.stdout is not None
                # A worker that is refused says why in its place, and tries again.
                line = await asyncio.wait_for(process.stdout.readline(), 20)
                assert line.startswith(b"registered as "), line.decode()


@pytest.mark.parametrize("language", ["python", "node"])
async def test_a_cancelled_call_of_an_example_worker_is_no_failure(
    own_url: str, redis_url: str, peer: InferencePeer, language: str
) -> None:
    command = example(language)
    async with running(own_url, redis_url, inference_target=peer.target) as service:
        ann = service.caller()
        environ = {**os.environ, "JANUS_TARGET": service.address, "JANUS_TENANT": ann.tenant}
        async with example_process(command, environ, stderr=PIPE) as process:
            stream = ann.converse(await ready(ann, ("shop.brew",)))
            (await peer.call()).tools(asking("c1", "shop.brew", item="tea"))
            seen = await until_kind(stream, "tool_call_progress")
            await ann.cancel(seen[0].run_id)
            assert kinds(await rest_of(stream))[-1] == "run_cancelled"
            process.terminate()
            _, said = await asyncio.wait_for(process.communicate(), 20)
            assert process.returncode == 0
            assert b"failed" not in said, said.decode()


async def rest_of(stream: Any) -> list[Any]:
    """What comes until the stream ends."""
    events = []
    async with asyncio.timeout(30):
        while (response := await stream.read()) is not grpc.aio.EOF:
            events.append(response.event)
    return events
