"""Second messages while replicas are killed at random: interrupt and rollback lose and double nothing."""

from __future__ import annotations

import asyncio
import random

import grpc
import pytest
from tests.fakes.orchestration_service import TERMINAL, Process, assert_pairs, kinds, said
from tests.fakes.peers.inference_peer import InferencePeer

from janus_api.content.v1 import message_pb2 as content
from janus_api.orchestration.v1 import agent_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb

INTERRUPT = agent_pb2.DOUBLE_TEXTING_INTERRUPT
ROLLBACK = agent_pb2.DOUBLE_TEXTING_ROLLBACK


@pytest.mark.parametrize("policy", [INTERRUPT, ROLLBACK])
async def test_messages_in_a_storm_of_kills_leave_whole_histories(
    replicas: list[Process], peer: InferencePeer, policy: agent_pb2.DoubleTexting.ValueType
) -> None:
    dice = random.Random(11)
    clients = [replica.caller("t1") for replica in replicas]
    thread = await clients[0].ready(double_texting=policy, tools=[agent_pb2.AgentTool(name="time.now")])

    async def speak() -> None:
        while True:
            call = await peer.any_call()
            if dice.random() < 0.5:
                call.tools(("c1", "time.now"))
                continue
            call.start()
            call.text("word ")
            await asyncio.sleep(dice.random() * 0.3)
            call.finish()

    async def kill() -> None:
        for _ in range(3):
            await asyncio.sleep(0.4 + dice.random())
            victim = dice.choice(replicas)
            victim.kill()
            await victim.start()

    async def send(number: int) -> str:
        while True:
            try:
                return (await dice.choice(clients).start(thread, f"m{number}", request_id=f"r{number}")).id
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                    raise
                await asyncio.sleep(0.1)
                clients[:] = [replica.caller("t1") for replica in replicas]

    model, killing = asyncio.create_task(speak()), asyncio.create_task(kill())
    sent = []
    for number in range(14):
        sent.append(await send(number))
        await asyncio.sleep(dice.random() * 0.4)
    await killing
    ann = replicas[0].caller("t1")
    ends = [(await ann.watched(run_id)) for run_id in sent]
    model.cancel()
    outcomes = [kinds(events)[-1] for events in ends]
    assert set(outcomes) <= {"run_completed", "run_cancelled"}
    assert outcomes[-1] == "run_completed"
    for events in ends:
        assert [kind for kind in kinds(events) if kind in TERMINAL] == [kinds(events)[-1]]
    history = await ann.messages(thread)
    assert_pairs(history)
    asked = [said(message) for message in history if message.role == content.ROLE_USER]
    if policy == INTERRUPT:
        assert asked == [f"m{number}" for number in range(14)], "no message is lost, none is there twice"
    else:
        kept = [f"m{number}" for number, outcome in enumerate(outcomes) if outcome == "run_completed"]
        assert asked == kept
    assert (await ann.call("GetThread", pb.GetThreadRequest(thread_id=thread))).thread.active_run_id == ""
