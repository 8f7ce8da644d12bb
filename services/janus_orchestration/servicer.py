"""gRPC face of orchestration: decode, delegate, encode. No decisions here."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message as Protobuf

from janus_api.orchestration.v1 import event_pb2, run_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_api.orchestration.v1 import orchestration_service_pb2_grpc as rpc
from janus_kit.auth.identity import current_identity
from janus_kit.clock import Clock
from janus_kit.ids import require_id
from janus_kit.telemetry.logging import get_logger
from janus_kit.validate import Violations
from janus_orchestration import telemetry
from janus_orchestration.agents import Agents
from janus_orchestration.answers import Answers, Reply
from janus_orchestration.idempotency import Once
from janus_orchestration.model import Cursor
from janus_orchestration.runs import Asking, RunDetails, Runs
from janus_orchestration.schedules import Schedules
from janus_orchestration.sessions import Rejected, Sessions
from janus_orchestration.threads import Threads
from janus_orchestration.watch import Batch
from janus_orchestration.webhooks import Webhooks
from janus_orchestration.wire import agents as agent_wire
from janus_orchestration.wire import pending as pending_wire
from janus_orchestration.wire import runs as run_wire
from janus_orchestration.wire import schedules as schedule_wire
from janus_orchestration.wire import sessions as session_wire
from janus_orchestration.wire import threads as thread_wire
from janus_orchestration.wire import webhooks as webhook_wire
from janus_orchestration.wire.content import fitting

SERVICE = "janus.orchestration.v1.OrchestrationService"
Context = grpc.aio.ServicerContext[Any, Any]
Answered = TypeVar("Answered", bound=Protobuf)

_log = get_logger(__name__)


class OrchestrationServicer(rpc.OrchestrationServiceServicer):
    """The RPCs that this version has; the others refuse by themselves."""

    def __init__(
        self,
        agents: Agents,
        threads: Threads,
        runs: Runs,
        answers: Answers,
        sessions: Sessions,
        schedules: Schedules,
        webhooks: Webhooks,
        clock: Clock,
    ) -> None:
        self._agents = agents
        self._threads = threads
        self._runs = runs
        self._answers = answers
        self._sessions = sessions
        self._schedules = schedules
        self._webhooks = webhooks
        self._clock = clock
        self._cancelling: set[asyncio.Task[Any]] = set()

    # -- agents ----------------------------------------------------------------------

    async def PutAgent(self, request: pb.PutAgentRequest, context: Context) -> pb.PutAgentResponse:
        spec = agent_wire.spec_from(request.agent)
        version = _expected(request.expected_version)

        def answer(agent: Any) -> pb.PutAgentResponse:
            return pb.PutAgentResponse(agent=agent_wire.agent_to(agent))

        key = _once("PutAgent", request, answer)
        result = await self._agents.put(_tenant(), spec, version, key)
        return pb.PutAgentResponse.FromString(result) if isinstance(result, bytes) else answer(result)

    async def GetAgent(self, request: pb.GetAgentRequest, context: Context) -> pb.GetAgentResponse:
        check = Violations()
        check.id("name", request.name)
        check.require(request.version >= 0, "version", "must not be negative")
        check.done()
        agent = await self._agents.get(_tenant(), request.name, request.version)
        return pb.GetAgentResponse(agent=agent_wire.agent_to(agent))

    async def ListAgents(self, request: pb.ListAgentsRequest, context: Context) -> pb.ListAgentsResponse:
        query = (_tenant(), "ListAgents")
        after = str(thread_wire.page_place(request.page_token, "", *query))
        agents, more = await self._agents.page(query[0], after, thread_wire.page_size(request.page_size))
        kept = fitting(list(map(agent_wire.agent_to, agents)))
        more = more or len(kept) < len(agents)
        return pb.ListAgentsResponse(
            agents=kept, next_page_token=thread_wire.page_token(kept[-1].name, *query) if more else ""
        )

    async def DeleteAgent(self, request: pb.DeleteAgentRequest, context: Context) -> pb.DeleteAgentResponse:
        answer = pb.DeleteAgentResponse()
        key = _once("DeleteAgent", request, lambda _: answer)
        await self._agents.delete(_tenant(), require_id("name", request.name), key)
        return answer

    # -- threads ---------------------------------------------------------------------

    async def CreateThread(self, request: pb.CreateThreadRequest, context: Context) -> pb.CreateThreadResponse:
        thread, messages = thread_wire.thread_from(request, self._clock.now())

        def answer(thread: Any) -> pb.CreateThreadResponse:
            return pb.CreateThreadResponse(thread=thread_wire.thread_to(thread))

        key = _once("CreateThread", request, answer)
        result = await self._threads.create(_tenant(), thread, messages, key)
        return pb.CreateThreadResponse.FromString(result) if isinstance(result, bytes) else answer(result)

    async def GetThread(self, request: pb.GetThreadRequest, context: Context) -> pb.GetThreadResponse:
        thread = await self._threads.get(_tenant(), require_id("thread_id", request.thread_id))
        return pb.GetThreadResponse(thread=thread_wire.thread_to(thread))

    async def ListThreads(self, request: pb.ListThreadsRequest, context: Context) -> pb.ListThreadsResponse:
        check = Violations()
        check.id("subject", request.subject, optional=True)
        check.id("agent", request.agent, optional=True)
        check.done()
        query = (_tenant(), "ListThreads", request.subject, request.agent)
        after = thread_wire.moment_place(request.page_token, *query)
        size = thread_wire.page_size(request.page_size)
        threads, more = await self._threads.page(query[0], request.subject, request.agent, after, size)
        kept = fitting(list(map(thread_wire.thread_to, threads)))
        last = threads[len(kept) - 1] if more or len(kept) < len(threads) else None
        return pb.ListThreadsResponse(
            threads=kept,
            next_page_token=thread_wire.moment_token(last.updated_at, last.id, *query) if last else "",
        )

    async def ForkThread(self, request: pb.ForkThreadRequest, context: Context) -> pb.ForkThreadResponse:
        check = Violations()
        check.id("thread_id", request.thread_id)
        check.id("at_message_id", request.at_message_id, optional=True)
        check.id("new_thread_id", request.new_thread_id, optional=True)
        check.done()

        def answer(thread: Any) -> pb.ForkThreadResponse:
            return pb.ForkThreadResponse(thread=thread_wire.thread_to(thread))

        key = _once("ForkThread", request, answer)
        result = await self._threads.fork(
            _tenant(), request.thread_id, request.at_message_id, request.new_thread_id, key
        )
        return pb.ForkThreadResponse.FromString(result) if isinstance(result, bytes) else answer(result)

    async def DeleteThread(self, request: pb.DeleteThreadRequest, context: Context) -> pb.DeleteThreadResponse:
        answer = pb.DeleteThreadResponse()
        key = _once("DeleteThread", request, lambda _: answer)
        thread_id = require_id("thread_id", request.thread_id)
        await self._threads.delete(_tenant(), thread_id, erase_memory=request.erase_memory, key=key)
        return answer

    async def ListMessages(self, request: pb.ListMessagesRequest, context: Context) -> pb.ListMessagesResponse:
        thread_id = require_id("thread_id", request.thread_id)
        query = (_tenant(), "ListMessages", thread_id, str(request.descending))
        after = int(thread_wire.page_place(request.page_token, 0, *query))
        messages, more = await self._threads.messages(
            query[0],
            thread_id,
            after,
            thread_wire.page_size(request.page_size),
            descending=request.descending,
        )
        return pb.ListMessagesResponse(
            messages=map(thread_wire.thread_message_to, messages),
            next_page_token=thread_wire.page_token(messages[-1].position, *query) if more else "",
        )

    # -- runs ------------------------------------------------------------------------

    async def Converse(self, request: pb.ConverseRequest, context: Context) -> AsyncIterator[pb.ConverseResponse]:
        caller = current_identity()
        asking = self._asking("Converse", request, request.cancel_on_disconnect)
        started = await self._runs.start(caller, asking)
        has_ended = False
        try:
            async with aclosing(self._runs.follow(caller.tenant, started)) as batches:  # type: ignore[type-var]
                async for batch in batches:
                    for event in batch.events:
                        has_ended = event.terminal
                        yield pb.ConverseResponse(event=event_pb2.RunEvent.FromString(event.wire))
                    _observe(batch)
        finally:
            if request.cancel_on_disconnect and not has_ended:
                self._cancel_soon(caller.tenant, started.run_id)

    async def StartRun(self, request: pb.StartRunRequest, context: Context) -> pb.StartRunResponse:
        caller = current_identity()
        started = await self._runs.start(caller, self._asking("StartRun", request, False))
        self._runs.leave(caller.tenant, started)
        details = await self._runs.brief(caller.tenant, started.run_id)
        return pb.StartRunResponse(run=_run_to(details))

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        details = await self._runs.get(_tenant(), require_id("run_id", request.run_id))
        return pb.GetRunResponse(run=_run_to(details))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        check = Violations()
        check.id("thread_id", request.thread_id, optional=True)
        check.done()
        states = run_wire.states_from(request.states)
        query = (_tenant(), "ListRuns", request.thread_id, ",".join(sorted(states)))
        after = thread_wire.moment_place(request.page_token, *query)
        size = thread_wire.page_size(request.page_size)
        runs, more = await self._runs.page(query[0], request.thread_id, states, after, size)
        kept = fitting(list(map(_run_to, runs)))
        last = runs[len(kept) - 1].run if more or len(kept) < len(runs) else None
        return pb.ListRunsResponse(
            runs=kept,
            next_page_token=thread_wire.moment_token(last.created_at, last.id, *query) if last else "",
        )

    async def CancelRun(self, request: pb.CancelRunRequest, context: Context) -> pb.CancelRunResponse:
        check = Violations()
        check.id("run_id", request.run_id)
        check.length("reason", request.reason, at_most=1_024)
        check.done()

        def answer(details: RunDetails) -> pb.CancelRunResponse:
            return pb.CancelRunResponse(run=_run_to(details))

        key = _once("CancelRun", request, answer)
        result = await self._runs.cancel(_tenant(), request.run_id, request.reason, key)
        return pb.CancelRunResponse.FromString(result) if isinstance(result, bytes) else answer(result)

    async def WatchRun(self, request: pb.WatchRunRequest, context: Context) -> AsyncIterator[pb.WatchRunResponse]:
        run_id = require_id("run_id", request.run_id)
        after = run_wire.cursor_from(request.after, "after") if request.HasField("after") else Cursor()
        async with aclosing(self._runs.watch(_tenant(), run_id, after)) as batches:  # type: ignore[type-var]
            async for batch in batches:
                for event in batch.events:
                    yield pb.WatchRunResponse(event=event_pb2.RunEvent.FromString(event.wire))
                _observe(batch)

    async def Session(
        self, requests: AsyncIterator[pb.SessionRequest], context: Context
    ) -> AsyncIterator[pb.SessionResponse]:
        config = await session_wire.config_from(requests)
        said = session_wire.said_from(requests, config, self._clock)
        sequence = 0
        async with aclosing(self._sessions.converse(current_identity(), config, said)) as told:  # type: ignore[type-var]
            async for each in told:
                if isinstance(each, Rejected):
                    sequence += 1
                    yield pb.SessionResponse(sequence=sequence, rejected=session_wire.rejected_to(each))
                    continue
                for event in each.events:
                    sequence += 1
                    yield pb.SessionResponse(sequence=sequence, event=event_pb2.RunEvent.FromString(event.wire))
                _observe(each)
        yield pb.SessionResponse(sequence=sequence + 1, ended=pb.SessionEnded())

    # -- schedules -------------------------------------------------------------------

    async def PutSchedule(self, request: pb.PutScheduleRequest, context: Context) -> pb.PutScheduleResponse:
        spec = schedule_wire.schedule_from(request.schedule, request.HasField("schedule"))
        version = _expected(request.expected_version)

        def answer(schedule: Any) -> pb.PutScheduleResponse:
            return pb.PutScheduleResponse(schedule=schedule_wire.schedule_to(schedule))

        result = await self._schedules.put(current_identity(), spec, version, _once("PutSchedule", request, answer))
        return pb.PutScheduleResponse.FromString(result) if isinstance(result, bytes) else answer(result)

    async def ListSchedules(self, request: pb.ListSchedulesRequest, context: Context) -> pb.ListSchedulesResponse:
        query = (_tenant(), "ListSchedules")
        after = str(thread_wire.page_place(request.page_token, "", *query))
        found, more = await self._schedules.page(query[0], after, thread_wire.page_size(request.page_size))
        schedules = fitting(map(schedule_wire.schedule_to, found))
        more |= len(schedules) < len(found)
        return pb.ListSchedulesResponse(
            schedules=schedules, next_page_token=thread_wire.page_token(schedules[-1].name, *query) if more else ""
        )

    async def DeleteSchedule(self, request: pb.DeleteScheduleRequest, context: Context) -> pb.DeleteScheduleResponse:
        name = require_id("name", request.name)
        key = _once("DeleteSchedule", request, lambda _: pb.DeleteScheduleResponse())
        await self._schedules.delete(_tenant(), name, key)
        return pb.DeleteScheduleResponse()

    # -- webhooks --------------------------------------------------------------------

    async def PutWebhook(self, request: pb.PutWebhookRequest, context: Context) -> pb.PutWebhookResponse:
        webhook = webhook_wire.webhook_from(request.webhook, request.HasField("webhook"))
        version = _expected(request.expected_version)

        def answer(stored: Any) -> pb.PutWebhookResponse:
            return pb.PutWebhookResponse(webhook=webhook_wire.webhook_to(stored))

        result = await self._webhooks.put(_tenant(), webhook, version, _once("PutWebhook", request, answer))
        return pb.PutWebhookResponse.FromString(result) if isinstance(result, bytes) else answer(result)

    async def ListWebhooks(self, request: pb.ListWebhooksRequest, context: Context) -> pb.ListWebhooksResponse:
        query = (_tenant(), "ListWebhooks")
        after = str(thread_wire.page_place(request.page_token, "", *query))
        found, more = await self._webhooks.page(query[0], after, thread_wire.page_size(request.page_size))
        return pb.ListWebhooksResponse(
            webhooks=map(webhook_wire.webhook_to, found),
            next_page_token=thread_wire.page_token(found[-1].name, *query) if more else "",
        )

    async def DeleteWebhook(self, request: pb.DeleteWebhookRequest, context: Context) -> pb.DeleteWebhookResponse:
        name = require_id("name", request.name)
        key = _once("DeleteWebhook", request, lambda _: pb.DeleteWebhookResponse())
        await self._webhooks.delete(_tenant(), name, key)
        return pb.DeleteWebhookResponse()

    async def ListWebhookDeliveries(
        self, request: pb.ListWebhookDeliveriesRequest, context: Context
    ) -> pb.ListWebhookDeliveriesResponse:
        name = require_id("webhook", request.webhook) if request.webhook else ""
        query = (_tenant(), "ListWebhookDeliveries", name, str(request.dead_only))
        after = webhook_wire.place_from(str(thread_wire.page_place(request.page_token, "", *query)))
        size = thread_wire.page_size(request.page_size)
        found, more = await self._webhooks.deliveries(query[0], name, request.dead_only, after, size)
        return pb.ListWebhookDeliveriesResponse(
            deliveries=map(webhook_wire.delivery_to, found),
            next_page_token=thread_wire.page_token(webhook_wire.place_to(found[-1]), *query) if more else "",
        )

    async def RetryWebhookDeliveries(
        self, request: pb.RetryWebhookDeliveriesRequest, context: Context
    ) -> pb.RetryWebhookDeliveriesResponse:
        only = webhook_wire.delivery_from(request.webhook, request.delivery_id)

        def answer(count: int) -> pb.RetryWebhookDeliveriesResponse:
            return pb.RetryWebhookDeliveriesResponse(retried=count)

        key = _once("RetryWebhookDeliveries", request, answer)
        result = await self._webhooks.retry(_tenant(), request.webhook, only, key)
        return pb.RetryWebhookDeliveriesResponse.FromString(result) if isinstance(result, bytes) else answer(result)

    # -- answers ---------------------------------------------------------------------

    async def SubmitToolResults(
        self, request: pb.SubmitToolResultsRequest, context: Context
    ) -> pb.SubmitToolResultsResponse:
        given = pending_wire.results_from(request.results, request.HasField("results"))
        return await self._give("SubmitToolResults", request, given, pb.SubmitToolResultsResponse)

    async def ResolveApproval(self, request: pb.ResolveApprovalRequest, context: Context) -> pb.ResolveApprovalResponse:
        given = pending_wire.approval_from(request.approval, request.HasField("approval"))
        return await self._give("ResolveApproval", request, given, pb.ResolveApprovalResponse)

    async def ProvideInput(self, request: pb.ProvideInputRequest, context: Context) -> pb.ProvideInputResponse:
        given = pending_wire.answer_from(request.answer, request.HasField("answer"))
        return await self._give("ProvideInput", request, given, pb.ProvideInputResponse)

    async def _give(self, method: str, request: Any, given: Reply, response: Callable[..., Answered]) -> Answered:
        def answer(details: RunDetails) -> Answered:
            return response(run=_run_to(details))

        result = await self._answers.give(current_identity(), given, _once(method, request, answer))
        return answer(result) if isinstance(result, RunDetails) else _parsed(response(), result)

    def _asking(
        self, method: str, request: pb.ConverseRequest | pb.StartRunRequest, cancel_on_disconnect: bool
    ) -> Asking:
        asked = run_wire.asked_from(request.input, request.HasField("input"), self._clock.now())
        return Asking(
            method=method,
            thread_id=asked.thread_id,
            agent=asked.agent,
            messages=asked.messages,
            options=asked.options,
            request_id=asked.request_id,
            body_hash=_hash(request),
            cancel_on_disconnect=cancel_on_disconnect,
        )

    def _cancel_soon(self, tenant: str, run_id: str) -> None:
        """The caller is gone: what is left of its call must not wait for anything."""
        work = self._runs.abandon(tenant, run_id, "the client went away")
        task = asyncio.create_task(work, name=f"abandon-{run_id}")
        self._cancelling.add(task)
        task.add_done_callback(self._cancelling.discard)


def _tenant() -> str:
    return current_identity().tenant


def _expected(version: int) -> int:
    check = Violations()
    check.require(version >= 0, "expected_version", "must not be negative")
    check.done()
    return version


def _run_to(details: RunDetails) -> run_pb2.Run:
    return run_wire.run_to(details.run, details.last, details.waiting_for, details.steps, details.output)


def _parsed(response: Answered, stored: bytes) -> Answered:
    response.ParseFromString(stored)
    return response


def _hash(request: Protobuf) -> bytes:
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()


def _once(method: str, request: Any, answer: Callable[[Any], Protobuf]) -> Once[Any]:
    check = Violations()
    check.id("request_id", request.request_id, optional=True)
    check.done()
    return Once(
        method,
        request.request_id,
        _hash(request),
        lambda result: answer(result).SerializeToString(deterministic=True),
    )


def _observe(batch: Batch) -> None:
    if batch.kept_at:
        telemetry.event_delivery.observe(time.monotonic() - batch.kept_at)
