"""The real orchestration service for tests, in this process or as one that can be killed."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from tests.fakes.patience import patient_postgres
from tests.fakes.service_process import ServiceProcess

from janus_api.content.v1 import message_pb2 as content
from janus_api.orchestration.v1 import agent_pb2, event_pb2, run_pb2, thread_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_api.orchestration.v1 import orchestration_service_pb2_grpc as rpc
from janus_kit.channel import connect
from janus_kit.errors import JanusError
from janus_kit.migrations import migrate
from janus_kit.mount import Mount
from janus_kit.server import Host, serve
from janus_kit.settings import RedisSettings, ServerSettings
from janus_orchestration.app import mount
from janus_orchestration.settings import OrchestrationSettings

NOWHERE = "127.0.0.1:1"
"""Where no service is."""


@dataclass
class Caller:
    """A client of one tenant, with short ways to say common things."""

    stub: Any
    tenant: str

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("janus-tenant", self.tenant),)

    async def call(self, method: str, request: Any, timeout: float = 20) -> Any:
        return await getattr(self.stub, method)(request, metadata=self.metadata, timeout=timeout)

    async def agent(self, name: str = "helper", **fields: Any) -> agent_pb2.Agent:
        request = pb.PutAgentRequest(agent=agent_pb2.Agent(name=name, **fields))
        return (await self.call("PutAgent", request)).agent

    async def thread(self, agent: str = "helper", **fields: Any) -> str:
        request = pb.CreateThreadRequest(thread=thread_pb2.Thread(agent=agent, **fields))
        return str((await self.call("CreateThread", request)).thread.id)

    async def ready(self, **agent: Any) -> str:
        """An agent and a thread of it; the thread's id."""
        await self.agent(**agent)
        return await self.thread()

    def converse(self, thread: str, text: str = "hello", *, cancel: bool = False, **fields: Any) -> Any:
        request = pb.ConverseRequest(input=asking(thread, text, **fields), cancel_on_disconnect=cancel)
        return self.stub.Converse(request, metadata=self.metadata)

    def watch(self, run_id: str, after: run_pb2.Cursor | None = None) -> Any:
        return self.stub.WatchRun(pb.WatchRunRequest(run_id=run_id, after=after), metadata=self.metadata)

    async def start(self, thread: str, text: str = "hello", **fields: Any) -> run_pb2.Run:
        return (await self.call("StartRun", pb.StartRunRequest(input=asking(thread, text, **fields)))).run

    async def run(self, run_id: str) -> run_pb2.Run:
        return (await self.call("GetRun", pb.GetRunRequest(run_id=run_id))).run

    async def cancel(self, run_id: str, reason: str = "") -> run_pb2.Run:
        return (await self.call("CancelRun", pb.CancelRunRequest(run_id=run_id, reason=reason))).run

    async def submit(self, run_id: str, results: dict[str, str], request_id: str = "") -> run_pb2.Run:
        """Answer client-side calls with texts."""
        given = [content.ToolResult(call_id=call, parts=[content.Part(text=text)]) for call, text in results.items()]
        sent = pb.ToolResults(run_id=run_id, results=given)
        request = pb.SubmitToolResultsRequest(results=sent, request_id=request_id)
        return (await self.call("SubmitToolResults", request)).run

    async def decide(
        self, run_id: str, approval_id: str, *, approve: bool = True, comment: str = "", request_id: str = ""
    ) -> run_pb2.Run:
        decision = agent_pb2.APPROVAL_DECISION_APPROVED if approve else agent_pb2.APPROVAL_DECISION_DECLINED
        sent = pb.ApprovalAnswer(run_id=run_id, approval_id=approval_id, decision=decision, comment=comment)
        request = pb.ResolveApprovalRequest(approval=sent, request_id=request_id)
        return (await self.call("ResolveApproval", request)).run

    async def provide(self, run_id: str, input_id: str, answer_json: str, request_id: str = "") -> run_pb2.Run:
        sent = pb.InputAnswer(run_id=run_id, input_id=input_id, answer_json=answer_json)
        return (await self.call("ProvideInput", pb.ProvideInputRequest(answer=sent, request_id=request_id))).run

    async def until(self, run_id: str, *states: run_pb2.RunState.ValueType) -> run_pb2.Run:
        """The run once it is in one of these states."""
        async with asyncio.timeout(15):
            while (run := await self.run(run_id)).state not in states:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return run

    async def messages(self, thread: str) -> list[content.Message]:
        """The committed messages."""
        answer = await self.call("ListMessages", pb.ListMessagesRequest(thread_id=thread))
        assert [item.position for item in answer.messages] == list(range(1, len(answer.messages) + 1))
        return [item.message for item in answer.messages]

    async def history(self, thread: str) -> list[tuple[str, str]]:
        """(role, text) of the committed messages."""
        return [(content.Role.Name(message.role)[5:].lower(), said(message)) for message in await self.messages(thread)]

    async def watched(self, run_id: str, after: run_pb2.Cursor | None = None) -> list[event_pb2.RunEvent]:
        """All events to the terminal one."""
        return await all_events(self.watch(run_id, after))


@dataclass
class Orchestration:
    """The service while it runs in this process."""

    host: Host
    address: str
    stub: Any

    def caller(self, tenant: str | None = None) -> Caller:
        """A client of a tenant; a new tenant unless told."""
        return Caller(self.stub, tenant or f"t{uuid.uuid4().hex[:12]}")


def options(**settings: Any) -> dict[str, Any]:
    """Settings with times that suit tests."""
    return {
        "inference_target": NOWHERE,
        "memory_target": NOWHERE,
        "lease_s": 1.5,
        "poll_s": 0.1,
        "inference_wait_s": 0.3,
        "stream_retry_s": 0.2,
        **settings,
    }


@asynccontextmanager
async def running(
    postgres_url: str, redis_url: str, *, peers_are_there: bool = True, drain_s: float = 0.2, **settings: Any
) -> AsyncIterator[Orchestration]:
    """Migrate the database and serve orchestration over it, in this process, once it reaches its peers."""
    postgres = patient_postgres(postgres_url)
    await migrate(postgres, ["janus_orchestration"])
    async with (
        mount(
            OrchestrationSettings(**options(**settings)), postgres=postgres, redis=RedisSettings(url=redis_url)
        ) as mounted,
        serve(
            [mounted], ServerSettings(listen="127.0.0.1:0", drain_s=drain_s, lame_duck_s=0, health_interval_s=0.2)
        ) as host,
    ):
        address = host.address or ""
        channel = connect(address)
        try:
            # A first attempt that a busy machine answers late would fail the test's first call.
            await asyncio.wait_for(channel.channel_ready(), 20)
            if peers_are_there:
                async with asyncio.timeout(20):
                    await _reached(mounted, [name for name in ("inference", "memory") if f"{name}_target" in settings])
            yield Orchestration(host, address, rpc.OrchestrationServiceStub(channel))
        finally:
            await channel.close()


async def _reached(mounted: Mount, names: list[str]) -> None:
    """Wait for the peers that a test gave: one that is still connected to would fail the test's first turn."""
    for part in mounted.parts:
        while part.name in names:
            try:
                await part.check()
            except JanusError:
                await asyncio.sleep(0.05)
            else:
                break


class Process(ServiceProcess):
    """``python -m janus_orchestration`` and clients of it."""

    def __init__(self, postgres_url: str, redis_url: str, *, log: Path | None = None, **settings: Any) -> None:
        environ = {f"JANUS_ORCHESTRATION__{name.upper()}": str(value) for name, value in options(**settings).items()}
        environ["JANUS_SERVER__DRAIN_S"] = "1"
        super().__init__("janus_orchestration", postgres_url, redis_url, environ, log)

    async def answer(self) -> Any:
        return await self.caller("probe").call("ListAgents", pb.ListAgentsRequest(), 1)

    def caller(self, tenant: str) -> Caller:
        return Caller(rpc.OrchestrationServiceStub(self._channel), tenant)


@asynccontextmanager
async def processes(count: int, postgres_url: str, redis_url: str, **settings: Any) -> AsyncIterator[list[Process]]:
    """So many replicas over the same stores."""
    await migrate(patient_postgres(postgres_url), ["janus_orchestration"])
    async with AsyncExitStack() as stack:
        replicas = [Process(postgres_url, redis_url, **settings) for _ in range(count)]
        for replica in replicas:
            stack.push_async_callback(replica.stop)
        await asyncio.gather(*(replica.start() for replica in replicas))
        yield replicas


def asking(thread: str, text: str, **fields: Any) -> pb.RunInput:
    message = content.Message(role=content.ROLE_USER, parts=[content.Part(text=text)])
    return pb.RunInput(thread_id=thread, messages=[message], **fields)


def said(message: content.Message) -> str:
    return "".join(part.text for part in message.parts)


def assert_pairs(history: Sequence[content.Message]) -> None:
    """Every call has its result in the message after it, in its order, and no result stands alone."""
    awaited: list[str] = []
    for message in history:
        answered = [part.tool_result.call_id for part in message.parts if part.HasField("tool_result")]
        assert answered == awaited
        awaited = [part.tool_call.call_id for part in message.parts if part.HasField("tool_call")]
    assert not awaited


def kinds(events: Sequence[event_pb2.RunEvent]) -> list[str]:
    """What the events are; a model's by what it said."""
    return [
        f"model.{event.model.event.WhichOneof('event')}"
        if event.WhichOneof("event") == "model"
        else str(event.WhichOneof("event"))
        for event in events
    ]


def text_of(events: Sequence[event_pb2.RunEvent]) -> str:
    """What the model said, as a client shows it that obeys `attempt_restarted`."""
    pieces: list[tuple[tuple[int, int], str]] = []
    for event in events:
        if event.WhichOneof("event") == "attempt_restarted":
            after = event.attempt_restarted.discard_after
            pieces = [piece for piece in pieces if piece[0] <= (after.epoch, after.sequence)]
        elif event.model.event.HasField("text_delta"):
            place = (event.cursor.epoch, event.cursor.sequence)
            pieces.append((place, event.model.event.text_delta.text))
    return "".join(text for _, text in pieces)


TERMINAL = {"run_completed", "run_failed", "run_cancelled", "run_expired"}


async def all_events(call: Any) -> list[event_pb2.RunEvent]:
    """All events of a stream, checked: in order, no undeclared gap, one terminal, last."""
    events = []
    async with asyncio.timeout(30):
        while (response := await call.read()) is not grpc.aio.EOF:
            events.append(response.event)
    check(events)
    return events


def check(events: Sequence[event_pb2.RunEvent], after: int | None = None, *, whole: bool = True) -> None:
    """Invariant I3 for what one client saw, from the event after `after` on."""
    last = after
    epoch = 0
    for event in events:
        sequence = event.cursor.sequence
        if event.WhichOneof("event") == "replay_compacted":
            assert event.replay_compacted.through == event.cursor
            assert last is None or sequence > last
        else:
            assert last is None or sequence == last + 1, f"{sequence} came after {last}"
        assert event.cursor.epoch >= epoch
        last, epoch = sequence, event.cursor.epoch
    ends = [place for place, event in enumerate(events) if event.WhichOneof("event") in TERMINAL]
    if whole and events:
        assert ends == [len(events) - 1], f"terminal events at {ends} of {len(events)}"


async def until(call: Any, count: int) -> list[event_pb2.RunEvent]:
    """The first so many events of a stream that goes on."""
    events = []
    async with asyncio.timeout(20):
        for _ in range(count):
            response = await call.read()
            assert response is not grpc.aio.EOF, f"the stream ended after {kinds(events)}"
            events.append(response.event)
    return events


async def until_kind(call: Any, kind: str) -> list[event_pb2.RunEvent]:
    """Events up to and with the first of a kind."""
    events: list[event_pb2.RunEvent] = []
    while not events or kinds(events)[-1] != kind:
        events += await until(call, 1)
    return events


async def eventually(condition: Any, seconds: float = 10) -> None:
    """Wait until an async condition holds."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - what is waited for is not of this loop
            await asyncio.sleep(0.02)
