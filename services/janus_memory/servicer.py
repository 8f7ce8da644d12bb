"""gRPC face of memory: decode, delegate, encode. No decisions here."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import memory_service_pb2_grpc as rpc
from janus_api.memory.v1 import recall_pb2
from janus_kit.auth.identity import current_identity
from janus_kit.clock import Clock
from janus_kit.ids import require_id
from janus_kit.interceptors.context import remaining_seconds
from janus_kit.telemetry import names
from janus_memory import metrics
from janus_memory.append import AppendTurns
from janus_memory.blocks import Blocks
from janus_memory.consistency import WAIT_S
from janus_memory.erase import Erase
from janus_memory.export import Export
from janus_memory.extract import Extract
from janus_memory.forgetting import ForgetTurns
from janus_memory.importing import Import
from janus_memory.ingest import Ingest
from janus_memory.lifecycle import Lifecycle
from janus_memory.model import DEFAULT_SPACE, Cause
from janus_memory.operations import OperationCalls
from janus_memory.recall import Recall
from janus_memory.reindex import Reindex
from janus_memory.remember import Remember
from janus_memory.spaces import Spaces
from janus_memory.windowing import ReadWindow
from janus_memory.wire import answers, blocks, erasures, extraction, lifecycle, operations, reads, writes
from janus_memory.wire.ingest import IngestStream, ingested_to
from janus_memory.wire.portable import Exported, ImportStream, export_query

Context = grpc.aio.ServicerContext[Any, Any]

SERVICE = pb.DESCRIPTOR.services_by_name["MemoryService"].full_name
# An answer that waited for the index still has to be made and to travel: so long at least, and a share of the time.
_ANSWER_MARGIN_S = 0.1
_ANSWER_MARGIN = 0.1


class MemoryServicer(rpc.MemoryServiceServicer):
    """Every method of the contract."""

    def __init__(
        self,
        append: AppendTurns,
        forget: ForgetTurns,
        window: ReadWindow,
        remember: Remember,
        recall: Recall,
        spaces: Spaces,
        memories: Lifecycle,
        core: Blocks,
        erase: Erase,
        ingest: Ingest,
        extract: Extract,
        export: Export,
        import_: Import,
        reindex: Reindex,
        operations: OperationCalls,
        clock: Clock,
    ) -> None:
        self._append = append
        self._forget = forget
        self._window = window
        self._remember = remember
        self._recall = recall
        self._spaces = spaces
        self._memories = memories
        self._core = core
        self._erase = erase
        self._ingest = ingest
        self._extract = extract
        self._export = export
        self._import = import_
        self._reindex = reindex
        self._operations = operations
        self._clock = clock

    async def AppendMessages(self, request: pb.AppendMessagesRequest, context: Context) -> pb.AppendMessagesResponse:
        command = writes.append_command(request)
        with metrics.observed("create_memory", {names.GEN_AI_MEMORY_RECORD_COUNT: len(command.turns)}):
            done = await self._append.run(
                _tenant(), command.scope, command.turns, command.request, _wait(command.waits)
            )
        return answers.appended_to(done)

    async def ForgetMessages(self, request: pb.ForgetMessagesRequest, context: Context) -> pb.ForgetMessagesResponse:
        command = writes.forget_command(request)
        with metrics.observed("delete_memory", {names.GEN_AI_MEMORY_RECORD_COUNT: len(command.ids)}):
            removed = await self._forget.run(_tenant(), command.scope, command.ids, command.request)
        return pb.ForgetMessagesResponse(removed=removed)

    async def GetWindow(self, request: pb.GetWindowRequest, context: Context) -> pb.GetWindowResponse:
        query = reads.window_query(request)
        with metrics.observed("get_window"):
            window = await self._window.run(_tenant(), query.scope, query.max_tokens, query.max_messages)
        return answers.window_to(window)

    async def Remember(self, request: pb.RememberRequest, context: Context) -> pb.RememberResponse:
        command = writes.remember_command(request)
        identity = current_identity()
        with metrics.observed("upsert_memory", {names.GEN_AI_MEMORY_RECORD_COUNT: len(command.memories)}):
            done = await self._remember.run(
                identity.tenant,
                identity.subject,
                command.space,
                command.memories,
                command.request,
                _wait(command.waits),
            )
        return answers.remembered_to(done)

    async def Ingest(self, request_iterator: AsyncIterator[pb.IngestRequest], context: Context) -> pb.IngestResponse:
        stream = IngestStream(request_iterator)
        config = await stream.config()
        identity = current_identity()
        with metrics.observed("ingest_memories", {names.GEN_AI_MEMORY_STORE_ID: config.scope.space}):
            done = await self._ingest.run(
                identity.tenant, identity.subject, config.scope.space, config.request_id, stream
            )
        return ingested_to(done)

    async def Recall(self, request: recall_pb2.RecallRequest, context: Context) -> recall_pb2.RecallResponse:
        query = reads.recall_query(request, self._clock.now())
        with metrics.observed("search_memory", {names.GEN_AI_MEMORY_STORE_ID: query.filter.scope.space}):
            found = await self._recall.run(_tenant(), query)
        for part in found.degraded:
            metrics.recall_degraded.labels(part).inc()
        return answers.recalled_to(found, packed=bool(query.pack_tokens))

    async def GetMemory(self, request: pb.GetMemoryRequest, context: Context) -> pb.GetMemoryResponse:
        memory_id = require_id("memory_id", request.memory_id)
        with metrics.observed("get_memory"):
            memory = await self._memories.get(_tenant(), memory_id)
        return pb.GetMemoryResponse(memory=answers.memory_to(memory))

    async def ListMemories(self, request: pb.ListMemoriesRequest, context: Context) -> pb.ListMemoriesResponse:
        tenant = _tenant()
        query = lifecycle.list_query(tenant, request, self._clock.now())
        with metrics.observed("list_memories"):
            memories, following = await self._memories.page(tenant, query.where, query.after, query.limit)
        return lifecycle.listed_to(tenant, query.query, memories, following)

    async def UpdateMemory(self, request: pb.UpdateMemoryRequest, context: Context) -> pb.UpdateMemoryResponse:
        command = lifecycle.update_command(request)
        identity = current_identity()
        with metrics.observed("update_memory"):
            done = await self._memories.update(
                identity.tenant,
                command.memory_id,
                command.values,
                command.expected_version,
                Cause(identity.subject, reason=command.reason),
                command.request,
            )
        return lifecycle.updated_to(done)

    async def ForgetMemory(self, request: pb.ForgetMemoryRequest, context: Context) -> pb.ForgetMemoryResponse:
        command = lifecycle.forget_command(request)
        identity = current_identity()
        with metrics.observed("delete_memory"):
            at = await self._memories.forget(
                identity.tenant,
                command.memory_id,
                command.purge,
                Cause(identity.subject, reason=command.reason),
                command.request,
            )
        return lifecycle.forgotten_to(at)

    async def GetHistory(self, request: pb.GetHistoryRequest, context: Context) -> pb.GetHistoryResponse:
        tenant = _tenant()
        query = lifecycle.history_query(tenant, request)
        with metrics.observed("get_history"):
            versions, following = await self._memories.history(tenant, query.memory_id, query.after, query.limit)
        return lifecycle.history_to(tenant, query.query, versions, following)

    async def PutBlock(self, request: pb.PutBlockRequest, context: Context) -> pb.PutBlockResponse:
        command = blocks.put_block_command(request)
        with metrics.observed("put_block"):
            block = await self._core.put(_tenant(), command.block, command.expected_version, command.request)
        return pb.PutBlockResponse(block=blocks.block_to(block))

    async def GetBlock(self, request: pb.GetBlockRequest, context: Context) -> pb.GetBlockResponse:
        scope, name = blocks.get_block_query(request)
        with metrics.observed("get_block"):
            block = await self._core.get(_tenant(), scope, name)
        return pb.GetBlockResponse(block=blocks.block_to(block))

    async def ListBlocks(self, request: pb.ListBlocksRequest, context: Context) -> pb.ListBlocksResponse:
        tenant = _tenant()
        query = blocks.list_blocks_query(tenant, request)
        with metrics.observed("list_blocks"):
            found, following = await self._core.page(tenant, query.scope, query.after, query.limit)
        return blocks.blocks_to(tenant, query.query, found, following)

    async def Extract(self, request: pb.ExtractRequest, context: Context) -> pb.ExtractResponse:
        command = extraction.extract_command(request)
        identity = current_identity()
        started = await self._extract.start(identity.tenant, identity.subject, command.wish, command.request)
        return pb.ExtractResponse(operation=operations.operation_to(started))

    async def Export(self, request: pb.ExportRequest, context: Context) -> AsyncIterator[pb.ExportResponse]:
        query = export_query(request)
        exported = Exported()
        with metrics.observed("export_memories", {names.GEN_AI_MEMORY_STORE_ID: query.scope.space}):
            # Closed with the call: it holds a database connection.
            async with aclosing(self._export.run(_tenant(), query)) as records:
                async for record in records:
                    yield exported.message(record)
            yield exported.completed()

    async def Import(self, request_iterator: AsyncIterator[pb.ImportRequest], context: Context) -> pb.ImportResponse:
        identity = current_identity()
        stream = ImportStream(request_iterator, identity.subject)
        config = await stream.config()
        with metrics.observed("import_memories"):
            done = await self._import.run(identity.tenant, config.space, config.request_id, stream)
        return pb.ImportResponse(stored=done.stored, unchanged=done.unchanged)

    async def PutSpace(self, request: pb.PutSpaceRequest, context: Context) -> pb.PutSpaceResponse:
        command = reads.put_space_command(request)
        with metrics.observed("create_memory_store", {names.GEN_AI_MEMORY_STORE_ID: command.draft.name}):
            space = await self._spaces.put(_tenant(), command.draft, command.expected_version, command.request)
        return pb.PutSpaceResponse(space=answers.space_to(space))

    async def GetSpace(self, request: pb.GetSpaceRequest, context: Context) -> pb.GetSpaceResponse:
        name = require_id("name", request.name or DEFAULT_SPACE)
        return pb.GetSpaceResponse(space=answers.space_to(await self._spaces.get(_tenant(), name)))

    async def ListSpaces(self, request: pb.ListSpacesRequest, context: Context) -> pb.ListSpacesResponse:
        tenant = _tenant()
        after, size = reads.page_of(tenant, "ListSpaces", request.page_size, request.page_token)
        spaces, following = await self._spaces.page(tenant, after, size)
        return pb.ListSpacesResponse(
            spaces=map(answers.space_to, spaces),
            next_page_token=reads.page_token(tenant, "ListSpaces", following),
        )

    async def Erase(self, request: pb.EraseRequest, context: Context) -> pb.EraseResponse:
        command = erasures.erase_command(request)
        with metrics.observed("delete_memory"):
            receipt = await self._erase.run(_tenant(), command.subject, command.space, command.reason, command.request)
        return pb.EraseResponse(receipt=erasures.receipt_to(receipt))

    async def Reindex(self, request: pb.ReindexRequest, context: Context) -> pb.ReindexResponse:
        command = operations.reindex_command(request)
        identity = current_identity()
        started = await self._reindex.start(identity.tenant, identity.subject, command.wish, command.request)
        return pb.ReindexResponse(operation=operations.operation_to(started))

    async def GetOperation(self, request: pb.GetOperationRequest, context: Context) -> pb.GetOperationResponse:
        operation_id = require_id("operation_id", request.operation_id)
        found = await self._operations.get(_tenant(), operation_id)
        return pb.GetOperationResponse(operation=operations.operation_to(found))

    async def WatchOperation(
        self, request: pb.WatchOperationRequest, context: Context
    ) -> AsyncIterator[pb.WatchOperationResponse]:
        operation_id = require_id("operation_id", request.operation_id)
        sequence = 0
        async for operation in self._operations.watch(_tenant(), operation_id):
            sequence += 1
            yield operations.watched_to(sequence, operation)

    async def CancelOperation(self, request: pb.CancelOperationRequest, context: Context) -> pb.CancelOperationResponse:
        command = operations.cancel_command(request)
        asked = await self._operations.cancel(_tenant(), command.operation_id, command.request)
        return pb.CancelOperationResponse(operation=operations.operation_to(asked))


def _tenant() -> str:
    return current_identity().tenant


def _wait(wanted: bool) -> float:
    """Seconds that a write may wait for the index: 10 at most, less before an earlier deadline."""
    if not wanted:
        return 0.0
    remaining = remaining_seconds()
    if remaining is None:
        return WAIT_S
    return max(min(WAIT_S, remaining - max(_ANSWER_MARGIN_S, remaining * _ANSWER_MARGIN)), 0.0)
