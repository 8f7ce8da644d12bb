"""Replicas killed at random times while clients converse and reconnect; then the histories are checked."""

from __future__ import annotations

import asyncio
import os
import random
import uuid
from contextlib import suppress

import grpc
from tests.fakes.orchestration_service import (
    TERMINAL,
    Caller,
    Process,
    assert_pairs,
    check,
    processes,
    said,
    text_of,
)
from tests.fakes.peers.inference_peer import InferencePeer, inference_peer

from janus_api.content.v1 import message_pb2 as content
from janus_api.orchestration.v1 import agent_pb2, event_pb2, run_pb2

SEED = int(os.environ.get("CHAOS_SEED", "7"))
RUNS = int(os.environ.get("CHAOS_RUNS", "24"))
KILLS = int(os.environ.get("CHAOS_KILLS", "3"))


AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def answer(clients: list[Caller], event: event_pb2.RunEvent, dice: random.Random) -> bool:
    """Give a run what it waits for, at whichever replica is there, until one has acknowledged it.

    Whether that was a consent.
    """
    await asyncio.sleep(dice.random() * 0.5)
    request_id = f"r{uuid.uuid4().hex}"
    approve = dice.random() < 0.5
    while True:
        client = dice.choice(clients)
        try:
            if event.HasField("approval_requested"):
                approval = event.approval_requested.approval.approval_id
                await client.decide(event.run_id, approval, approve=approve, request_id=request_id)
            else:
                call = event.tool_call_requested.call.call_id
                await client.submit(event.run_id, {call: "here"}, request_id)
            return event.HasField("approval_requested") and approve
        except grpc.aio.AioRpcError as error:
            if error.code() not in AWAY:
                raise
        await asyncio.sleep(0.05)


async def talk(clients: list[Caller], thread: str, text: str, dice: random.Random) -> list[event_pb2.RunEvent]:
    """One turn by a client that reconnects, to whichever replica, until it has the whole, and answers what is asked."""
    request_id = f"r{uuid.uuid4().hex}"
    seen: list[event_pb2.RunEvent] = []
    answering: list[asyncio.Task[bool]] = []
    async with asyncio.timeout(90):
        while True:
            client = dice.choice(clients)
            if seen:
                stream = client.watch(seen[-1].run_id, seen[-1].cursor)
            else:
                stream = client.converse(thread, text, request_id=request_id)
            try:
                while (response := await stream.read()) is not grpc.aio.EOF:
                    event = response.event
                    seen.append(event)
                    if event.HasField("approval_requested") or event.tool_call_requested.client_side:
                        answering.append(asyncio.create_task(answer(clients, event, dice)))
                if seen and seen[-1].WhichOneof("event") in TERMINAL:
                    await asyncio.gather(*answering)
                    return seen
            except grpc.aio.AioRpcError as error:
                if error.code() not in AWAY:
                    raise
            await asyncio.sleep(0.05)


async def speak(peer: InferencePeer, dice: random.Random) -> None:
    """A model that takes its time and calls tools, so that replicas die in mid-sentence and among calls."""
    while True:
        call = await peer.any_call()
        if dice.random() < 0.4:
            some = ["time.now", "time.now", "no.such.tool", "where.am_i", "memory.search"]
            names = [dice.choice(some) for _ in range(dice.randint(1, 4))]
            # Nobody finds anything, since memory is away; that is a result as well.
            query = '{"query": "x"}'
            call.tools(*[(f"c{place}", name, query if "search" in name else "{}") for place, name in enumerate(names)])
            continue
        call.start()

        async def words(call: object = call) -> None:
            for word in range(dice.randint(3, 12)):
                call.text(f"{word} ")  # type: ignore[attr-defined]
                await asyncio.sleep(dice.random() * 0.05)
            call.finish()  # type: ignore[attr-defined]

        peer.speaking.add(asyncio.create_task(words()))


async def killing(replicas: list[Process], dice: random.Random) -> None:
    for _ in range(KILLS):
        await asyncio.sleep(0.5 + dice.random() * 1.5)
        victim = dice.choice(replicas)
        victim.kill()
        await asyncio.sleep(dice.random())
        await victim.start()


async def look(clients: list[Caller], threads: list[str], dice: random.Random, enough: asyncio.Event) -> None:
    """Somebody who reads threads at any time, and finds no call without its result."""
    while not enough.is_set():
        with suppress(grpc.aio.AioRpcError):
            assert_pairs(await dice.choice(clients).messages(dice.choice(threads)))
        await asyncio.sleep(0.05)


async def test_nothing_is_lost_doubled_or_contradicted(own_url: str, redis_url: str) -> None:
    dice = random.Random(SEED)
    async with (
        inference_peer() as peer,
        processes(2, own_url, redis_url, inference_target=peer.target) as replicas,
    ):
        name = f"t{uuid.uuid4().hex[:8]}"
        ann = replicas[0].caller(name)
        tools = [
            agent_pb2.AgentTool(name="time.now"),
            agent_pb2.AgentTool(name="where.am_i", client_side=True),
            agent_pb2.AgentTool(name="memory.search", needs_approval=True),
        ]
        await ann.agent(tools=tools)
        threads = [await ann.thread() for _ in range(max(1, RUNS // 4))]
        model = asyncio.create_task(speak(peer, dice))
        chaos = asyncio.create_task(killing(replicas, dice))
        enough = asyncio.Event()
        readers = [replica.caller(name) for replica in replicas]
        looking = asyncio.create_task(look(readers, threads, random.Random(SEED), enough))

        async def conversation(thread: str) -> list[list[event_pb2.RunEvent]]:
            clients = [replica.caller(name) for replica in replicas]
            return [await talk(clients, thread, f"turn {turn}", dice) for turn in range(4)]

        found = await asyncio.gather(*(conversation(thread) for thread in threads))
        await chaos
        enough.set()
        await looking
        model.cancel()
        ann = replicas[0].caller(name)
        for thread, runs in zip(threads, found, strict=True):
            expected = []
            for turn, seen in enumerate(runs):
                check(seen, after=0)
                run = await ann.run(seen[0].run_id)
                assert run.state == run_pb2.RUN_STATE_COMPLETED, run.error
                assert run.last_event == seen[-1].cursor
                expected += [("user", f"turn {turn}"), ("assistant", text_of(seen))]
                again = {event.cursor.sequence: event for event in await ann.watched(run.id)}
                for event in seen:
                    if "replay_compacted" not in (
                        event.WhichOneof("event"),
                        again[event.cursor.sequence].WhichOneof("event"),
                    ):
                        assert again[event.cursor.sequence] == event
            history = await ann.messages(thread)
            assert_pairs(history)
            spoken = [
                (content.Role.Name(message.role)[5:].lower(), said(message))
                for message in history
                if not any(part.HasField("tool_call") or part.HasField("tool_result") for part in message.parts)
            ]
            assert spoken == expected
