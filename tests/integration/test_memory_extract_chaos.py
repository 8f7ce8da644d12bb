"""A replica is killed, again and again, while it extracts; and people are erased at any moment of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest
from google.protobuf import json_format
from tests.fakes.memory_service import MemoryProcess, eventually, refused, running
from tests.fakes.reading_model import everything, number_of, proposed, reading_model
from tests.fakes.traces import traces

from janus_api.common.v1 import operation_pb2
from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import scope_pb2
from janus_kit.errors import NotFound
from janus_kit.rpc_errors import from_status
from janus_memory.extracting import TURNS

PIECES = 8
ANN = {"subject": "ann"}


def facts_and_a_status(given: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Every turn is a fact, and the first of a piece supersedes the status that the piece before left."""
    first = given["turns"][0]
    status = {"turn": first["number"], "predicate": "status"}
    if any(known["predicate"] == "status" for known in given["known"]):
        status |= {"action": "update", "known": number_of(given, "status")}
    return [*everything(given), proposed(first["text"], f"The status is that {first['text']}", **status)]


async def test_every_piece_is_applied_once_however_often_its_worker_dies(postgres_url: str, redis_url: str) -> None:
    async with AsyncExitStack() as stack:
        reader = await stack.enter_async_context(reading_model(facts_and_a_status))
        settings = {"inference_target": reader.target, "extraction_model": "fast"}
        memory = await stack.enter_async_context(running(postgres_url, redis_url, operations=False, **settings))
        owner = await asyncpg.connect(postgres_url)
        stack.push_async_callback(owner.close)
        victim = MemoryProcess(postgres_url, redis_url, indexer=False, summariser=False, **settings)
        stack.push_async_callback(victim.stop)
        await victim.start()
        ann = memory.caller()
        count = PIECES * TURNS
        for start in range(0, count, 96):
            await ann.append("talk", *(f"fact {n}." for n in range(start, start + 96)), scope=ANN)
        request = pb.ExtractRequest(scope=scope_pb2.Scope(thread="talk", **ANN))
        reader.go.clear()
        operation = (await ann.call("Extract", request)).operation
        chance = random.Random(20261128)
        for _ in range(PIECES - 1):
            async with asyncio.timeout(30):
                await reader.asked.wait()
            # While the model thinks, with its answer in hand, or after that was applied: at most one piece further.
            later = chance.choice([None, 0, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05])
            if later is not None:
                reader.go.set()
                reader.go.clear()
                await asyncio.sleep(later)
            victim.kill()
            reader.asked.clear()
            await owner.execute(
                """UPDATE memory.operation SET leased_until = now() - interval '1 minute', failures = 0
                   WHERE id = $1 AND ended_at IS NULL""",
                operation.id,
            )
            await victim.start()
        reader.go.set()

        async def done() -> bool:
            found = await ann.call("GetOperation", pb.GetOperationRequest(operation_id=operation.id))
            return bool(found.operation.HasField("ended_at"))

        await eventually(done, 60)
        found = (await ann.call("GetOperation", pb.GetOperationRequest(operation_id=operation.id))).operation
        assert found.state == operation_pb2.OPERATION_STATE_SUCCEEDED, from_status(found.error)
        report = json_format.Parse(found.result_json, pb.ExtractionResult())
        assert (report.turns, report.unusable_turns) == (count, 0)
        # Some answers were in vain, and none counted twice.
        assert len(reader.prompts) > PIECES
        assert len(report.memories) == count + PIECES
        rows = await owner.fetch("SELECT * FROM memory.memory WHERE tenant = $1", ann.tenant)
        facts = [row["text"] for row in rows if row["text"].startswith("fact")]
        assert sorted(facts) == sorted(f"fact {n}." for n in range(count))
        # Each piece's status took the place of the one before, once.
        statuses = [row for row in rows if row["predicate"] == "status"]
        assert len([row for row in statuses if row["superseded_at"] is None]) == 1
        assert len({row["id"] for row in statuses}) == PIECES
        assert len(statuses) == 2 * PIECES - 1


@pytest.mark.parametrize("seed", range(4))
async def test_a_person_who_is_erased_meanwhile_leaves_nothing(postgres_url: str, redis_url: str, seed: int) -> None:
    chance = random.Random(seed)
    async with AsyncExitStack() as stack:
        reader = await stack.enter_async_context(reading_model(everything))
        settings = {"inference_target": reader.target, "extraction_model": "fast"}
        memory = await stack.enter_async_context(running(postgres_url, redis_url, **settings))
        app = memory.caller()
        for round_ in range(6):
            word = f"zq{app.tenant[1:]}x{round_}"
            await app.append("talk", *(f"{word} says {n}." for n in range(3 * TURNS)), scope={"subject": word})
            await app.append("talk", f"bob says {round_}.", scope={"subject": "bob"})
            scope = {"subject": word} if chance.random() < 0.5 else {}
            request = pb.ExtractRequest(scope=scope_pb2.Scope(thread="talk", **scope))
            operation = (await app.call("Extract", request)).operation
            await asyncio.sleep(chance.random() * 0.3)
            await app.call("Erase", pb.EraseRequest(scope=scope_pb2.Scope(subject=word)))
            error = await refused(app.call("GetOperation", pb.GetOperationRequest(operation_id=operation.id)))
            assert isinstance(error, NotFound)
            assert await traces(postgres_url, redis_url, None, word) == []
            # Nor does whoever was at work bring anything back.
            await asyncio.sleep(0.1)
            assert await traces(postgres_url, redis_url, None, word) == []
