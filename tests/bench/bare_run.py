"""The least that a durable run can be: the baseline of what Janus's orchestration costs.

    python -m tests.bench.bare_run POSTGRES_URL REDIS_URL UPSTREAM      prints its port, ends with its stdin

grpc.aio on uvloop, asyncpg and redis-py as anybody uses them, one statement for all writes of a commit. A run is
stored, then its model is asked; every event is in Redis before it is sent; the answer is committed with the promise
that memory gets it; memory gets it; the end is committed. It knows text and one owner, and nothing else: no tenants,
no rights, no deadlines, no leases, no cancel, no take-over, no resume, no tools, no limits, no metrics, no log.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import grpc
import redis.asyncio
import uvloop
from tests.fakes.announced import announced

from janus_api.content.v1 import message_pb2 as content
from janus_api.inference.v1 import inference_service_pb2 as inference_pb
from janus_api.inference.v1 import inference_service_pb2_grpc as inference_rpc
from janus_api.memory.v1 import memory_service_pb2 as memory_pb
from janus_api.memory.v1 import memory_service_pb2_grpc as memory_rpc
from janus_api.memory.v1 import record_pb2
from janus_api.orchestration.v1 import event_pb2, run_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_api.orchestration.v1 import orchestration_service_pb2_grpc as rpc
from janus_kit.ids import new_id

_EVENTS = (
    "events AS (INSERT INTO orchestration.event (tenant, run_id, sequence, epoch, kind, terminal, content) "
    "SELECT $1, $2, sequence, 1, 'event', terminal, content "
    "FROM unnest($3::bigint[], $4::boolean[], $5::bytea[]) AS e (sequence, terminal, content))"
)
_MESSAGE = (
    "said AS (INSERT INTO orchestration.message "
    "(tenant, thread_id, id, position, role, name, text, content, run_id, is_output) "
    "VALUES ($1, $6, $7, $8, $9, '', $10, $11, $2, $9 = 'assistant'))"
)
_START = (
    f"WITH {_EVENTS}, {_MESSAGE}, "
    "run AS (INSERT INTO orchestration.run "
    "(tenant, id, thread_id, agent, agent_version, state, options, subject, epoch, last_sequence, "
    "reserved_sequence, created_at, started_at) "
    "VALUES ($1, $2, $6, $12, 1, 'running', '{}', '', 1, 3, 1024, now(), now())), "
    "lease AS (INSERT INTO orchestration.run_lease (run_id, tenant, owner, epoch, expires_at) "
    "VALUES ($2, $1, 'bare', 1, now() + interval '1 hour')), "
    "step AS (INSERT INTO orchestration.step "
    "(tenant, run_id, index, kind, attempts, after_epoch, after_sequence, started_at) "
    "VALUES ($1, $2, 1, 'model_call', 1, 1, 3, now())) "
    "UPDATE orchestration.thread SET last_position = $8, active_run = $2, updated_at = now() "
    "WHERE tenant = $1 AND id = $6"
)
_ANSWER = (
    f"WITH {_EVENTS}, {_MESSAGE}, "
    "run AS (UPDATE orchestration.run SET revision = 1 WHERE tenant = $1 AND id = $2), "
    "ended AS (UPDATE orchestration.step SET ended_at = now() WHERE tenant = $1 AND run_id = $2 AND index = 1), "
    "begun AS (INSERT INTO orchestration.step "
    "(tenant, run_id, index, kind, attempts, after_epoch, after_sequence, started_at) "
    "VALUES ($1, $2, 2, 'store', 1, 1, 3, now())), "
    "owed AS (INSERT INTO orchestration.memory_outbox "
    "(tenant, thread_id, from_position, to_position, run_id, space, next_attempt) "
    "VALUES ($1, $6, $8 - 1, $8, $2, 'default', now() + interval '1 hour')) "
    "UPDATE orchestration.thread SET last_position = $8, memory_position = $8, updated_at = now() "
    "WHERE tenant = $1 AND id = $6"
)
_END = (
    f"WITH {_EVENTS}, "
    "run AS (UPDATE orchestration.run SET revision = 2, state = 'completed', ended_at = now(), last_sequence = $7 "
    "WHERE tenant = $1 AND id = $2), "
    "ended AS (UPDATE orchestration.step SET ended_at = now() WHERE tenant = $1 AND run_id = $2 AND index = 2), "
    "paid AS (DELETE FROM orchestration.memory_outbox WHERE tenant = $1 AND thread_id = $6 AND run_id = $2), "
    "lease AS (DELETE FROM orchestration.run_lease WHERE tenant = $1 AND run_id = $2) "
    "UPDATE orchestration.thread SET active_run = NULL WHERE tenant = $1 AND id = $6"
)
_LOCK = (
    "SELECT t.last_position, r.epoch FROM orchestration.thread t JOIN orchestration.run r ON r.tenant = t.tenant "
    "AND r.id = $3 WHERE t.tenant = $1 AND t.id = $2 FOR UPDATE"
)


class BareRuns(rpc.OrchestrationServiceServicer):
    """Converse."""

    def __init__(self, pool: asyncpg.Pool, streams: "redis.asyncio.Redis", channel: grpc.aio.Channel) -> None:
        self._pool = pool
        self._streams = streams
        self._model = inference_rpc.InferenceServiceStub(channel)
        self._memory = memory_rpc.MemoryServiceStub(channel)

    async def Converse(self, request: pb.ConverseRequest, context: Any) -> AsyncIterator[pb.ConverseResponse]:
        run = _Run(dict(context.invocation_metadata())["janus-tenant"], request.input.thread_id)
        asked = request.input.messages[0]
        asked.id = new_id("msg")
        async with self._pool.acquire() as connection, connection.transaction():
            thread = await connection.fetchrow(
                "SELECT t.last_position, t.agent, v.spec->>'model' AS model FROM orchestration.thread t "
                "JOIN orchestration.agent_version v ON v.tenant = t.tenant AND v.name = t.agent AND v.version = 1 "
                "WHERE t.tenant = $1 AND t.id = $2 FOR UPDATE OF t",
                run.tenant,
                run.thread_id,
            )
            before = await connection.fetch(
                "SELECT content FROM orchestration.message WHERE tenant = $1 AND thread_id = $2 "
                "ORDER BY position DESC LIMIT 200",
                run.tenant,
                run.thread_id,
            )
            place = thread["last_position"] + 1
            began = [
                run.event(run_queued=event_pb2.RunQueued(thread_id=run.thread_id)),
                run.event(run_started=event_pb2.RunStarted(thread_id=run.thread_id, agent=thread["agent"])),
                run.event(message_committed=event_pb2.MessageCommitted(message=asked, position=place)),
            ]
            await connection.execute(
                _START, *run.rows(began), *_message(run.thread_id, asked, place, "user"), thread["agent"]
            )
        prompt = inference_pb.StreamGenerateRequest()
        prompt.prompt.model = thread["model"]
        for row in reversed(before):
            prompt.prompt.messages.add().ParseFromString(row["content"])
        prompt.prompt.messages.append(asked)
        call = self._model.StreamGenerate(prompt)
        async for response in self._sent(run, began):
            yield response

        kept, texts = [], []
        async for waiting in _batches(call):
            events = [run.event(model=event_pb2.ModelEvent(step=1, event=each.event)) for each in waiting]
            texts += [each.event.text_delta.text for each in waiting]
            kept += [event for event in events if not event.model.event.HasField("text_delta")]
            async for response in self._sent(run, events):
                yield response

        answer = content.Message(
            id=new_id("msg"), role=content.ROLE_ASSISTANT, parts=[content.Part(text="".join(texts))]
        )
        place += 1
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.fetchrow(_LOCK, run.tenant, run.thread_id, run.id)
            await connection.execute(_ANSWER, *run.rows(kept), *_message(run.thread_id, answer, place, "assistant"))
        turns = [record_pb2.Turn(message=message) for message in (asked, answer)]
        await self._memory.AppendMessages(memory_pb.AppendMessagesRequest(turns=turns))
        ends = [
            run.event(message_committed=event_pb2.MessageCommitted(message=answer, position=place)),
            run.event(run_completed=event_pb2.RunCompleted()),
        ]
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.fetchrow(_LOCK, run.tenant, run.thread_id, run.id)
            await connection.execute(_END, *run.rows(ends), run.thread_id, run.sequence)
        async for response in self._sent(run, ends):
            yield response

    async def _sent(self, run: "_Run", events: Sequence[event_pb2.RunEvent]) -> AsyncIterator[pb.ConverseResponse]:
        async with self._streams.pipeline(transaction=False) as pipeline:
            for event in events:
                pipeline.xadd(run.stream, {"e": event.SerializeToString()}, id=f"1-{event.cursor.sequence}")
            pipeline.pexpire(run.stream, 3_600_000)
            await pipeline.execute()
        for event in events:
            yield pb.ConverseResponse(event=event)


class _Run:
    """One run, and the numbers of its events."""

    def __init__(self, tenant: str, thread_id: str) -> None:
        self.id = new_id("run")
        self.tenant = tenant
        self.thread_id = thread_id
        self.stream = f"bare:{tenant}:{self.id}"
        self.sequence = 0

    def event(self, **what: Any) -> event_pb2.RunEvent:
        self.sequence += 1
        event = event_pb2.RunEvent(run_id=self.id, cursor=run_pb2.Cursor(epoch=1, sequence=self.sequence), **what)
        event.at.GetCurrentTime()
        return event

    def rows(self, events: Sequence[event_pb2.RunEvent]) -> tuple[Any, ...]:
        return (
            self.tenant,
            self.id,
            [event.cursor.sequence for event in events],
            [event.HasField("run_completed") for event in events],
            [event.SerializeToString() for event in events],
        )


def _message(thread_id: str, message: content.Message, place: int, role: str) -> tuple[Any, ...]:
    text = "".join(part.text for part in message.parts)
    return thread_id, message.id, place, role, text, message.SerializeToString()


async def _batches(call: Any) -> AsyncIterator[list[Any]]:
    """What has come of a stream by the time that it is wanted."""
    arrived: asyncio.Queue[Any] = asyncio.Queue()

    async def listen() -> None:
        async for response in call:
            arrived.put_nowait(response)
        arrived.put_nowait(None)

    listening = asyncio.create_task(listen())
    while True:
        waiting = [await arrived.get()]
        while not arrived.empty():
            waiting.append(arrived.get_nowait())
        is_over = waiting[-1] is None
        if found := waiting[: -1 if is_over else None]:
            yield found
        if is_over:
            break
    await listening


async def _main(postgres_url: str, redis_url: str, upstream: str) -> None:
    server = grpc.aio.server()
    async with (
        asyncpg.create_pool(postgres_url, min_size=10, max_size=20) as pool,
        redis.asyncio.Redis.from_url(redis_url) as streams,
        grpc.aio.insecure_channel(upstream) as channel,
    ):
        rpc.add_OrchestrationServiceServicer_to_server(BareRuns(pool, streams, channel), server)
        await announced(server)


if __name__ == "__main__":
    uvloop.run(_main(*sys.argv[1:]))
