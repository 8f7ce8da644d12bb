"""The stream of Ingest, decoded item by item; and its answer."""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace

from google.rpc import status_pb2

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import record_pb2
from janus_kit.errors import InvalidArgument, JanusError
from janus_kit.rpc_errors import to_status
from janus_kit.validate import Violations
from janus_memory.documents import DEFAULT_CHUNK, chunks
from janus_memory.ingest import Ingested, Item
from janus_memory.model import Kind, NewMemory, Scope
from janus_memory.versions import digest
from janus_memory.window import MAX_BYTES
from janus_memory.wire.values import MAX_METADATA_BYTES, check_metadata, scope_of
from janus_memory.wire.writes import one_memory, one_turn

_MAX_DOCUMENT_BYTES = 3 * 1024 * 1024
# Others on the event loop take their turn between so many characters of a document.
_CHARS_AT_A_TIME = 4_000
_NUMBER_BYTES = 24


@dataclass(frozen=True)
class IngestConfig:
    """How a stream is to be taken in."""

    scope: Scope
    request_id: str


class IngestStream:
    """Implements ingest.Source over the messages of a call."""

    def __init__(self, messages: AsyncIterator[pb.IngestRequest]) -> None:
        self._messages = messages
        self._body = hashlib.sha256()
        self._scope = Scope()

    async def config(self) -> IngestConfig:
        """The first message. Raises InvalidArgument when it is something else, or wrong."""
        first = await anext(aiter(self._messages), None)
        if first is None or first.WhichOneof("message") != "config":
            raise InvalidArgument("config", "must be sent first")
        check = Violations()
        self._scope = scope_of(check, "config.scope", first.config.scope)
        check.id("config.request_id", first.config.request_id, optional=True)
        check.done()
        request_id = first.config.request_id
        first.config.ClearField("request_id")
        self._count(first)
        return IngestConfig(self._scope, request_id)

    async def items(self) -> AsyncIterator[Item]:
        index = 0
        async for message in self._messages:
            self._count(message)
            kind = message.WhichOneof("message")
            if kind == "config":
                raise InvalidArgument("config", "must be sent exactly once")
            size = message.ByteSize()
            try:
                if kind == "memory":
                    yield Item(index, one_memory(message.memory, self._scope), size)
                elif kind == "turn":
                    yield Item(index, one_turn(message.turn, self._scope), size)
                elif kind == "document":
                    waiting = 0
                    for chunk in self._chunks(message.document):
                        yield Item(index, chunk, len(chunk.text) * 2)
                        waiting += len(chunk.text)
                        if waiting > _CHARS_AT_A_TIME:
                            waiting = 0
                            await asyncio.sleep(0)
                else:
                    raise InvalidArgument("message", "must be a memory, a turn or a document")
            except InvalidArgument as refusal:
                yield Item(index, refusal, 1_000)
            index += 1

    def digest(self) -> bytes:
        return self._body.digest()

    def _count(self, message: pb.IngestRequest) -> None:
        encoded = message.SerializeToString(deterministic=True)
        self._body.update(len(encoded).to_bytes(4, "big"))
        self._body.update(encoded)

    def _chunks(self, document: pb.IngestDocument) -> Iterator[NewMemory]:
        """The memories that a document is cut into. Raises InvalidArgument naming every field that is wrong."""
        check = Violations()
        check.length("document.name", document.name, at_least=1, at_most=1_024)
        if "\x00" in document.text:
            check.add("document.text", "must not contain NUL characters")
        elif not document.text.strip() or len(document.text.encode()) > _MAX_DOCUMENT_BYTES:
            check.add("document.text", f"must be 1 character to {_MAX_DOCUMENT_BYTES} bytes of UTF-8, not blank")
        check_metadata(check, "document.metadata_json", document.metadata_json)
        size = document.chunk_size or DEFAULT_CHUNK
        check.between("document.chunk_size", size, 200, 8_000)
        check.done()
        source = {"document": document.name, "quote": "", "origin": record_pb2.ORIGIN_IMPORT}
        whole = NewMemory(
            id="",
            kind=Kind.DOCUMENT_CHUNK,
            text="",
            scope=self._scope,
            predicate="",
            provenance_json=json.dumps([source]),
            valid_from=None,
            valid_to=None,
            expires_at=None,
            importance=0.5,
            metadata_json=document.metadata_json,
            embedding=(),
            digest=b"",
        )
        rest = _after_number(document.metadata_json)
        for number, text in enumerate(chunks(document.text, size), 1):
            yield replace(
                whole,
                text=text,
                metadata_json=document.metadata_json if rest is None else f'{{"chunk": {number}{rest}',
                digest=digest(whole.kind, text, whole.scope),
            )


def _after_number(metadata_json: str) -> str | None:
    """What follows a chunk's number in its metadata; None when that key is taken or there is no room for it."""
    if not metadata_json:
        return "}"
    own = json.loads(metadata_json)
    if "chunk" in own or len(metadata_json.encode()) > MAX_METADATA_BYTES - _NUMBER_BYTES:
        return None
    return f", {metadata_json.lstrip()[1:]}" if own else "}"


def packed(error: JanusError) -> str:
    """An error as a text, to be kept with an answer."""
    return base64.b64encode(to_status(error).SerializeToString()).decode()


def ingested_to(done: Ingested) -> pb.IngestResponse:
    """An answer that every client can receive: the first errors that fit."""
    answer = pb.IngestResponse(
        stored=done.stored, unchanged=done.unchanged, rejected=done.rejected, consistency_token=done.token
    )
    size = 0
    for index, text in done.errors:
        size += len(text)
        if size > MAX_BYTES:
            break
        status = status_pb2.Status.FromString(base64.b64decode(text))
        answer.errors.append(pb.IngestError(index=index, status=status))
    return answer
