"""Composition root of memory: settings in, a Mount out."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import grpc

from janus_api.inference.v1 import inference_service_pb2_grpc as inference_rpc
from janus_api.memory.v1 import memory_service_pb2_grpc as rpc
from janus_kit.channel import connect
from janus_kit.clock import SystemClock
from janus_kit.errors import JanusError, Unavailable
from janus_kit.interceptors.context import remaining_seconds
from janus_kit.mount import BackgroundTask, Mount, Part
from janus_kit.postgres import database
from janus_kit.redis import redis as redis_client
from janus_kit.settings import PostgresSettings, RedisSettings, SettingsError
from janus_memory import metrics
from janus_memory.adapters.chroma_index import ChromaIndex
from janus_memory.adapters.inference_embedder import KnownEmbedders
from janus_memory.adapters.inference_extraction import InferenceExtraction
from janus_memory.adapters.inference_summaries import InferenceSummaries
from janus_memory.adapters.lexical_embedder import LexicalEmbedder
from janus_memory.adapters.onnx_embedder import OnnxModels
from janus_memory.adapters.pgvector_graph import PgvectorGraph
from janus_memory.adapters.pgvector_index import PgvectorIndex
from janus_memory.adapters.pgvector_resident import ResidentVectors
from janus_memory.adapters.postgres_operations import PostgresOperations
from janus_memory.adapters.postgres_records import PostgresRecords
from janus_memory.adapters.receipt_keys import ReceiptKeys
from janus_memory.adapters.redis_windows import RedisWindows
from janus_memory.append import AppendTurns
from janus_memory.blocks import Blocks
from janus_memory.erase import Erase
from janus_memory.export import Export
from janus_memory.extract import Extract
from janus_memory.extracting import Extraction
from janus_memory.extraction import KIND as EXTRACT
from janus_memory.forgetting import ForgetTurns
from janus_memory.graph import GraphKeeper
from janus_memory.importing import Import
from janus_memory.indexer import Indexer
from janus_memory.ingest import Ingest
from janus_memory.lifecycle import Lifecycle
from janus_memory.model import Backend
from janus_memory.operation_runner import OperationRunner
from janus_memory.operations import Changes, OperationCalls
from janus_memory.parts import Parts
from janus_memory.ports import Handler, VectorIndex
from janus_memory.rebuild import Rebuild
from janus_memory.recall import Recall
from janus_memory.receipts import ReceiptError
from janus_memory.reconcile import Reconcile
from janus_memory.reindex import KIND as REINDEX
from janus_memory.reindex import Reindex
from janus_memory.remember import Remember
from janus_memory.retention import Sweep
from janus_memory.servicer import SERVICE, MemoryServicer
from janus_memory.settings import MemorySettings
from janus_memory.spaces import SpaceDefaults, Spaces
from janus_memory.summarising import Summariser
from janus_memory.windowing import ReadWindow
from janus_memory.wire.extraction import report_to
from janus_memory.wire.ingest import packed
from janus_memory.wire.portable import encoded

_BACKLOG_EVERY_S = 5.0
_OPERATIONS_POLL_S = 1.0
_CHANNEL_STATES_AWAY = {grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN}


@asynccontextmanager
async def mount(settings: MemorySettings, *, postgres: PostgresSettings, redis: RedisSettings) -> AsyncIterator[Mount]:
    """The memory service, ready to be served. Needs its migrations applied; waits for nothing."""
    clock = SystemClock()
    parts = Parts()
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(database(postgres, application="janus-memory"))
        client = await stack.enter_async_context(redis_client(redis, application="janus-memory"))
        records = PostgresRecords(pool)
        windows = RedisWindows(client, length=settings.window_turns, ttl_s=settings.window_ttl_s)
        resident = ResidentVectors(pool, settings.resident_mib << 20)
        indexes: dict[int, VectorIndex] = {Backend.PGVECTOR: PgvectorIndex(pool, resident)}
        checks = [
            Part("postgres", True, records.ping, "nothing is read or written"),
            Part("redis", False, windows.ping, "windows are read from postgres"),
        ]
        if settings.chroma_url:
            chroma = ChromaIndex(settings.chroma_url, records, timeout_s=settings.chroma_timeout_s)
            stack.push_async_callback(chroma.close)
            indexes[Backend.CHROMA] = chroma
            checks.append(Part("chroma", False, _noting(chroma, parts), "recall is lexical; vectors are indexed later"))
        stub: inference_rpc.InferenceServiceAsyncStub | None = None
        if settings.inference_target:
            channel = await stack.enter_async_context(connect(settings.inference_target))
            stub = inference_rpc.InferenceServiceStub(channel)
            checks.append(Part("inference", False, _reachable(channel), "only the built-in embedder makes vectors"))
        local = OnnxModels(settings.onnx_dir, settings.onnx_threads)
        stack.callback(local.close)
        embedders = KnownEmbedders(LexicalEmbedder(), local, stub, settings.embed_timeout_s)
        defaults = SpaceDefaults(
            Backend[settings.default_backend.upper()],
            settings.default_embedding_model,
            settings.default_dimensions,
            frozenset(Backend(backend) for backend in indexes),
        )
        spaces = Spaces(records, embedders, defaults)
        erase = Erase(records, windows, indexes, spaces, _receipt_keys(settings), parts, clock)
        operations = PostgresOperations(pool)
        changes = Changes(operations)
        recall = Recall(records, indexes, embedders, spaces, parts, clock, settings.dense_timeout_s, remaining_seconds)
        handlers: dict[str, Handler] = {
            REINDEX: Rebuild(records, indexes, embedders, parts, clock, retire_after_s=settings.retire_after_s),
        }
        if stub:
            reader = InferenceExtraction(stub, settings.extraction_timeout_s)
            handlers[EXTRACT] = Extraction(records, recall, reader, clock, report_to)
        servicer = MemoryServicer(
            append=AppendTurns(records, windows, spaces, parts, clock),
            forget=ForgetTurns(records, windows, spaces, parts),
            window=ReadWindow(records, windows, spaces, parts),
            remember=Remember(records, spaces, parts, clock),
            recall=recall,
            spaces=spaces,
            memories=Lifecycle(records, spaces),
            core=Blocks(records, spaces),
            erase=erase,
            ingest=Ingest(records, spaces, clock, packed),
            extract=Extract(records, spaces, settings.extraction_model, inference=stub is not None),
            export=Export(records, indexes, spaces),
            import_=Import(records, spaces, encoded),
            reindex=Reindex(records, spaces),
            operations=OperationCalls(records, changes),
            clock=clock,
        )
        sweep = Sweep(records, windows, every_s=settings.sweep_every_s)
        background: list[tuple[str, BackgroundTask]] = [
            ("memory-backlog", lambda: _watch(records, operations)),
            ("memory-sweep", sweep.run),
            ("memory-erasures", erase.run_for_ever),
            ("memory-operation-changes", changes.run),
        ]
        if settings.resident_mib:
            background.append(("memory-resident", resident.run))
        if settings.reconcile_every_s:
            reconcile = Reconcile(records, windows, indexes)
            background.append(("memory-reconciler", lambda: reconcile.run_for_ever(settings.reconcile_every_s)))
        if settings.indexer:
            indexer = Indexer(records, indexes, embedders, parts, poll_s=settings.indexer_poll_s)
            background.append(("memory-indexer", indexer.run))
            background.append(("memory-graph", GraphKeeper(PgvectorGraph(pool)).run))
        if settings.operations:
            runner = OperationRunner(
                records, operations, changes, handlers, at_once=settings.operations_at_once, poll_s=_OPERATIONS_POLL_S
            )
            background.append(("memory-operations", runner.run))
        if settings.summariser:
            model = settings.summary_model
            writer = InferenceSummaries(stub, model, settings.summary_timeout_s) if stub and model else None
            background.append(("memory-summaries", Summariser(records, writer, settings).run))
        yield Mount(
            name="memory",
            register=lambda server: rpc.add_MemoryServiceServicer_to_server(servicer, server),
            services=(SERVICE,),
            parts=tuple(checks),
            background=tuple(background),
        )


async def _watch(records: PostgresRecords, operations: PostgresOperations) -> None:
    """Keep the outbox's gauges, and remove stored answers and operations that are past their time."""
    while True:
        try:
            metrics.show(await records.backlog())
            await records.forget_requests()
            await records.forget_imports()
            await records.forget_vector_changes()
            await operations.forget_ended()
        except JanusError:
            pass  # Postgres is away or busy: its own part says so.
        await asyncio.sleep(_BACKLOG_EVERY_S)


def _receipt_keys(settings: MemorySettings) -> ReceiptKeys:
    key = settings.receipt_key
    try:
        return ReceiptKeys(key.get_secret_value() if key else None)
    except ReceiptError as error:
        raise SettingsError([f"memory.receipt_key: {error}"]) from None


def _noting(index: ChromaIndex, parts: Parts) -> Callable[[], Awaitable[None]]:
    async def check() -> None:
        try:
            await index.ping()
        except Unavailable:
            parts.away("chroma")
            raise
        parts.back("chroma")

    return check


def _reachable(channel: grpc.aio.Channel) -> Callable[[], Awaitable[None]]:
    async def check() -> None:
        if channel.get_state(try_to_connect=True) in _CHANNEL_STATES_AWAY:
            raise Unavailable("inference", "the inference service does not answer")

    return check
