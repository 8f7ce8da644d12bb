"""The composition root of orchestration: settings in, ``Mount`` out."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from janus_api.orchestration.v1 import orchestration_service_pb2_grpc as rpc
from janus_api.tools.v1 import tool_worker_service_pb2_grpc as tools_rpc
from janus_kit.channel import connect
from janus_kit.clock import SystemClock
from janus_kit.errors import Unavailable
from janus_kit.ids import new_id
from janus_kit.mount import Mount, Part
from janus_kit.postgres import Database, database
from janus_kit.redis import ping
from janus_kit.redis import redis as redis_client
from janus_kit.settings import PostgresSettings, RedisSettings, SettingsError
from janus_orchestration import telemetry
from janus_orchestration.adapters.http_receivers import http_receivers
from janus_orchestration.adapters.inference_client import InferenceClient
from janus_orchestration.adapters.mcp_connector import connector, is_installed
from janus_orchestration.adapters.memory_client import MemoryClient
from janus_orchestration.adapters.postgres_journal import PostgresStore
from janus_orchestration.adapters.postgres_leases import PostgresLeases, PostgresOutbox
from janus_orchestration.adapters.postgres_offers import PostgresOffer
from janus_orchestration.adapters.postgres_schedules import PostgresTimetable
from janus_orchestration.adapters.postgres_tools import PostgresDispatches, PostgresWorkers
from janus_orchestration.adapters.postgres_webhooks import PostgresDeliveryQueue
from janus_orchestration.adapters.redis_events import RedisEvents
from janus_orchestration.agents import Agents
from janus_orchestration.answers import Answers
from janus_orchestration.builtin_tools import BuiltInTools
from janus_orchestration.children import Children, Orphans
from janus_orchestration.deliveries import Deliveries
from janus_orchestration.executions import ExecutionLimits, Executions
from janus_orchestration.mcp_server import McpLimits, McpServer
from janus_orchestration.mcp_tools import McpTools, kept_connected
from janus_orchestration.ownership import Ownership
from janus_orchestration.removals import Removals
from janus_orchestration.replay import Replay
from janus_orchestration.runs import Runs
from janus_orchestration.schedule_runner import ScheduleRunner
from janus_orchestration.schedules import Schedules
from janus_orchestration.servicer import (
    SERVICE,
    OrchestrationServicer,
)
from janus_orchestration.sessions import Sessions
from janus_orchestration.settings import OrchestrationSettings
from janus_orchestration.threads import Threads
from janus_orchestration.tools import Toolbox
from janus_orchestration.turn import Helpers, TurnLimits
from janus_orchestration.watch import Hub
from janus_orchestration.webhook_sender import SenderLimits, WebhookSender
from janus_orchestration.webhooks import Webhooks
from janus_orchestration.wire.events import ProtobufEvents
from janus_orchestration.wire.schedules import ProtobufMessages
from janus_orchestration.wire.tools import ProtobufTools
from janus_orchestration.wire.webhooks import JsonLetters
from janus_orchestration.worker_servicer import SERVICE as WORKER_SERVICE
from janus_orchestration.worker_servicer import ToolWorkerServicer
from janus_orchestration.worker_sessions import SessionLimits, WorkerSessions
from janus_orchestration.worker_tools import WorkerTools

_APPLICATION = "janus-orchestration"
_HEALTH_S = 1.0
_OUTBOX_POLL_S = 1.0
# News may be missed; this is how long one goes without.
_CALLS_POLL_S = 1.0

INFERENCE_SERVICE = "janus.inference.v1.InferenceService"
MEMORY_SERVICE = "janus.memory.v1.MemoryService"


@asynccontextmanager
async def mount(
    settings: OrchestrationSettings, *, postgres: PostgresSettings, redis: RedisSettings
) -> AsyncIterator[Mount]:
    """Orchestration, ready to be served; leaving the block lets go of its runs.

    Waits for nothing: a part that is away is found to be so when it is used.
    """
    async with AsyncExitStack() as stack:
        db = await stack.enter_async_context(database(postgres, application=_APPLICATION))
        writer = await stack.enter_async_context(redis_client(redis, application=_APPLICATION))
        # Reads that block have connections of their own, one a run that is watched from here.
        readers = await stack.enter_async_context(redis_client(redis, application=f"{_APPLICATION}-watch"))
        inference = await stack.enter_async_context(connect(settings.inference_target))
        memory = await stack.enter_async_context(connect(settings.memory_target))
        receivers = await stack.enter_async_context(
            http_receivers(settings.webhook_networks, timeout_s=settings.webhook_timeout_s)
        )

        clock = SystemClock()
        codec = ProtobufEvents()
        store = PostgresStore(db)
        stream = RedisEvents(writer, readers, ttl_s=settings.stream_ttl_s, timeout_s=settings.stream_timeout_s)
        replay = Replay(store, stream, codec)
        hub = Hub(stream, replay, buffer=settings.watcher_buffer)
        replay.unkept = hub.unkept
        stack.push_async_callback(hub.close)
        memories = MemoryClient(memory, clock)
        outbox = PostgresOutbox(db)
        deliveries = Deliveries(store, outbox, memories, poll_s=_OUTBOX_POLL_S)
        removals = Removals(store, outbox, memories, poll_s=_OUTBOX_POLL_S)
        model = InferenceClient(inference, clock)
        tools_codec = ProtobufTools()
        workers = PostgresWorkers(db, retention_s=settings.tool_retention_s)
        worker_tools = WorkerTools(PostgresDispatches(db), poll_s=_CALLS_POLL_S, lease_s=settings.worker_lease_s)
        mcp_servers = _mcp_servers(settings, db)
        tenants = {name: each.tenants for name, each in settings.mcp_servers.items()}
        mcp_tools = McpTools(mcp_servers, tenants)
        sessions = WorkerSessions(workers, _session_limits(settings), mcp_tools)
        stack.push_async_callback(sessions.close)
        for server in mcp_servers:
            server.on_tools = partial(sessions.hide, tenants=tenants[server.name])
        # Ended last, when no run is worked on any more.
        await stack.enter_async_context(kept_connected(mcp_servers))
        # What the operator has set up cannot be stood in for by a tenant's worker.
        toolbox = Toolbox([BuiltInTools(memories, clock), mcp_tools, worker_tools])
        helpers = Helpers(
            model=model,
            memory=memories,
            toolbox=toolbox,
            deliveries=deliveries,
            removals=removals,
            children=Children(codec, tools_codec, clock),
            events=codec,
            tools=tools_codec,
            clock=clock,
        )
        executions = Executions(
            new_id("orc"),
            store=store,
            stream=stream,
            hub=hub,
            codec=codec,
            clock=clock,
            helpers=helpers,
            limits=_limits(settings),
        )
        telemetry.runs_stuck.labels(telemetry.WORKFLOW).set_function(executions.stuck)
        leases = PostgresLeases(db)
        ownership = Ownership(leases, executions, lease_s=settings.lease_s, poll_s=settings.poll_s)
        runs = Runs(
            store,
            executions,
            hub,
            replay,
            codec,
            clock,
            lease_s=settings.lease_s,
            max_queued=settings.max_queued_per_thread,
        )
        orphans = Orphans(leases, runs, poll_s=settings.poll_s)
        schedule_runner = ScheduleRunner(
            store,
            PostgresTimetable(db),
            runs,
            codec,
            ProtobufMessages(),
            poll_s=settings.schedule_poll_s,
            grace_s=settings.schedule_grace_s,
        )
        webhook_sender = WebhookSender(
            store, PostgresDeliveryQueue(db), receivers, JsonLetters(), clock, _sender_limits(settings)
        )
        threads = Threads(store, stream, deliveries, removals, tools_codec, clock)
        answers = Answers(store, executions, runs)
        agents = Agents(store, toolbox, model, memories, clock)
        servicer = OrchestrationServicer(
            agents,
            threads,
            runs,
            answers,
            Sessions(agents, threads, runs, answers, codec),
            Schedules(store),
            Webhooks(store, receivers, most=settings.max_webhooks_per_tenant),
            clock,
        )
        tools = ToolWorkerServicer(sessions)

        def register(server: grpc.aio.Server) -> None:
            rpc.add_OrchestrationServiceServicer_to_server(servicer, server)
            tools_rpc.add_ToolWorkerServiceServicer_to_server(tools, server)

        async def own() -> None:
            # Ended before the listeners are: runs that were cut must not find the
            # other services gone and fail.
            try:
                await asyncio.Event().wait()
            finally:
                await executions.close()
                await ownership.let_go()

        async def hear_of_calls() -> None:
            async for news in workers.news():
                worker_tools.heard(news)
                sessions.heard(news)

        async def drain() -> None:
            # Runs that are worked on here may need the workers that are connected here.
            await executions.drain()
            await sessions.drain()

        yield Mount(
            name="orchestration",
            register=register,
            services=(SERVICE, WORKER_SERVICE),
            parts=(
                Part("postgres", True, db.ping, "nothing can be started or read"),
                Part("redis", False, lambda: ping(writer), "token deltas are not kept for replays"),
                Part("inference", False, _serving(inference, INFERENCE_SERVICE, "inference"), "runs fail"),
                Part(
                    "memory",
                    False,
                    _serving(memory, MEMORY_SERVICE, "memory"),
                    "nothing is recalled; turns are stored when it is back",
                ),
                *(Part(f"mcp-{each.name}", False, each.check, "its tools fail") for each in mcp_servers),
            ),
            background=(
                ("orchestration-runs", own),
                ("orchestration-heartbeat", ownership.keep),
                ("orchestration-claims", ownership.claim),
                ("orchestration-news", ownership.hear),
                ("orchestration-orphans", orphans.work),
                ("orchestration-outbox", deliveries.work),
                ("orchestration-removals", removals.work),
                ("orchestration-calls", worker_tools.watch),
                ("orchestration-call-news", hear_of_calls),
                ("orchestration-workers", sessions.keep),
                ("orchestration-worker-claims", sessions.claim),
                ("orchestration-schedules", schedule_runner.work),
                ("orchestration-webhooks", webhook_sender.work),
            ),
            drain=drain,
            conclude=sessions.conclude,
        )


def _mcp_servers(settings: OrchestrationSettings, db: Database) -> list[McpServer]:
    if settings.mcp_servers and not is_installed():
        raise SettingsError(["orchestration.mcp_servers: needs the packages of janus-mesh[mcp]"])
    return [
        McpServer(
            name,
            connector(name, each),
            McpLimits(
                each.max_concurrency,
                each.connect_timeout_s,
                each.refresh_s,
                each.longest_retry_s,
                settings.worker_lease_s,
            ),
            PostgresOffer(db, name, each.origin),
        )
        for name, each in settings.mcp_servers.items()
    ]


def _limits(settings: OrchestrationSettings) -> ExecutionLimits:
    return ExecutionLimits(
        max_runs=settings.max_runs,
        max_takeovers=settings.max_takeovers,
        stream_retry_s=settings.stream_retry_s,
        turn=TurnLimits(
            wall_time_s=settings.max_wall_time_s,
            recall_timeout_s=settings.recall_timeout_s,
            store_timeout_s=settings.store_timeout_s,
            inference_wait_s=settings.inference_wait_s,
            max_agents=settings.max_agents,
        ),
    )


def _session_limits(settings: OrchestrationSettings) -> SessionLimits:
    return SessionLimits(
        heartbeat_s=settings.worker_lease_s / 3,
        lease_s=settings.worker_lease_s,
        longest_s=settings.worker_stream_s,
        poll_s=_CALLS_POLL_S,
    )


def _sender_limits(settings: OrchestrationSettings) -> SenderLimits:
    return SenderLimits(
        poll_s=settings.webhook_poll_s,
        timeout_s=settings.webhook_timeout_s,
        at_once=settings.webhooks_at_once,
        per_webhook=settings.webhook_concurrency,
        attempts=settings.webhook_attempts,
        first_retry_s=settings.webhook_first_retry_s,
        longest_retry_s=settings.webhook_longest_retry_s,
    )


def _serving(channel: grpc.aio.Channel, service: str, part: str) -> Callable[[], Awaitable[None]]:
    """Whether another service says that it serves."""
    stub = health_pb2_grpc.HealthStub(channel)

    async def check() -> None:
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=_HEALTH_S)
        except grpc.aio.AioRpcError as error:
            raise Unavailable(part, f"the {part} service does not answer") from error
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise Unavailable(part, f"the {part} service does not serve")

    return check
