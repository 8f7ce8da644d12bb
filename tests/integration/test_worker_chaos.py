"""Replicas and workers killed at random times while runs call tools; then it is counted what really ran."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import uuid
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
from tests.fakes.orchestration_service import (
    TERMINAL,
    Caller,
    assert_pairs,
    check,
    eventually,
    processes,
)
from tests.fakes.peers.inference_peer import InferencePeer, inference_peer
from tests.fakes.worker_process import Workers
from tests.integration.test_orchestration_chaos import answer

from janus_api.content.v1 import message_pb2 as content
from janus_api.orchestration.v1 import agent_pb2, event_pb2, run_pb2

SEED = int(os.environ.get("CHAOS_SEED", "11"))
RUNS = int(os.environ.get("CHAOS_RUNS", "16"))
KILLS = int(os.environ.get("CHAOS_KILLS", "5"))
PATIENCE_S = 60 + 2 * RUNS
LEASE_S = 2.5
_MAY_TRY_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.RESOURCE_EXHAUSTED)


async def speak(peer: InferencePeer, dice: random.Random) -> None:
    """A model that asks for tools twice, of both kinds, and then is content."""
    while True:
        call = await peer.any_call()
        asked = sum(message.role == content.ROLE_TOOL for message in call.prompt.messages)
        if asked >= 2:
            call.answer("content")
            continue
        call.tools(
            *[
                (f"c{place}", name, json.dumps({"word": uuid.uuid4().hex, "seconds": round(dice.random(), 2)}))
                for place, name in enumerate(dice.choices(["once", "again"], k=dice.randint(1, 3)))
            ]
        )


async def talk(
    clients: list[Caller], dice: random.Random, consents: Counter[str]
) -> tuple[str, list[event_pb2.RunEvent]]:
    """One turn in a thread of its own, by a client that reconnects and decides about what may have happened."""
    seen: list[event_pb2.RunEvent] = []
    request_id, thread = f"r{uuid.uuid4().hex}", ""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            client = dice.choice(clients)
            try:
                thread = thread or await client.thread()
                stream = (
                    client.watch(seen[-1].run_id, seen[-1].cursor)
                    if seen
                    else client.converse(thread, "work", request_id=request_id)
                )
                while (response := await stream.read()) is not grpc.aio.EOF:
                    seen.append(event := response.event)
                    if event.HasField("approval_requested"):
                        word = json.loads(event.approval_requested.approval.call.arguments_json)["word"]
                        consents[word] += await answer(clients, event, dice)
                if seen and seen[-1].WhichOneof("event") in TERMINAL:
                    return thread, seen
            except grpc.aio.AioRpcError as error:
                if error.code() not in _MAY_TRY_AGAIN:
                    raise
            await asyncio.sleep(0.05)


async def test_what_must_not_run_twice_does_so_only_with_a_persons_word(
    own_url: str, redis_url: str, tmp_path: Path
) -> None:
    dice = random.Random(SEED)
    tenant = f"t{uuid.uuid4().hex[:8]}"
    async with AsyncExitStack() as stack:
        peer = await stack.enter_async_context(inference_peer())
        replicas = await stack.enter_async_context(
            processes(2, own_url, redis_url, inference_target=peer.target, worker_lease_s=LEASE_S)
        )
        workers = Workers([replica.address for replica in replicas], tenant, tmp_path)
        stack.push_async_callback(workers.stop)
        workers.add()
        workers.add()
        ann = replicas[0].caller(tenant)

        async def put() -> bool:
            names = ("once", "again")
            tools = [agent_pb2.AgentTool(name=name, when_no_worker=agent_pb2.WHEN_NO_WORKER_WAIT) for name in names]
            try:
                await ann.agent(memory=agent_pb2.MemoryPolicy(recall_limit=0, do_not_store=True), tools=tools)
            except grpc.aio.AioRpcError:
                return False
            return True

        await eventually(put, 20)
        model = asyncio.create_task(speak(peer, dice))
        stack.callback(model.cancel)

        async def killing() -> None:
            for _ in range(KILLS):
                await asyncio.sleep(0.3 + dice.random())
                if dice.random() < 0.5:
                    await workers.kill(dice)
                    continue
                victim = dice.choice(replicas)
                victim.kill()
                await asyncio.sleep(dice.random())
                await victim.start()

        chaos = asyncio.create_task(killing())
        clients = [[replica.caller(tenant) for replica in replicas] for _ in range(RUNS)]
        consents: Counter[str] = Counter()
        found = await asyncio.gather(
            *(talk(each, random.Random(place), consents) for place, each in enumerate(clients))
        )
        await chaos

        marks = workers.marks
        reader = replicas[0].caller(tenant)
        for thread, seen in found:
            check(seen, after=0)
            run = await reader.run(seen[0].run_id)
            assert run.state == run_pb2.RUN_STATE_COMPLETED, run.error
            history = await reader.messages(thread)
            assert_pairs(history)
            for asked, answered in itertools.pairwise(history):
                for place, part in enumerate(asked.parts):
                    if not part.HasField("tool_call"):
                        continue
                    word = json.loads(part.tool_call.arguments_json)["word"]
                    told = "".join(each.text for each in answered.parts[place].tool_result.parts)
                    if part.tool_call.name == "once":
                        assert marks[f"{word}-begun"] <= 1 + consents[word]
                    if told.startswith(f"{word} is done"):
                        assert marks[f"{word}-done"] >= 1
                    else:
                        assert part.tool_call.name == "once" or "vanished" in told, told
                        assert "not known" in told or "vanished" in told, told
