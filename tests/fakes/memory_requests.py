"""Requests for any RPC of memory, that name what a test says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from tests.fakes.requests import UNSET

from janus_api.memory.v1 import filter_pb2, space_pb2
from janus_api.memory.v1 import memory_service_pb2 as pb

METHODS: Mapping[str, MethodDescriptor] = pb.DESCRIPTOR.services_by_name["MemoryService"].methods_by_name
DIMENSIONS = 64


@dataclass(frozen=True)
class Names:
    """Ids of somebody's things in one space."""

    space: str
    subject: str
    agent: str
    thread: str
    memory_id: str
    message_id: str
    operation_id: str
    block: str
    request_id: str

    @classmethod
    def new(cls, operation_id: str = "") -> Names:
        mark = uuid4().hex[:12]
        return cls(
            f"space-{mark}",
            f"subject-{mark}",
            f"agent-{mark}",
            f"thread-{mark}",
            f"memory-{mark}",
            f"message-{mark}",
            operation_id or f"op_{mark}",
            f"block-{mark}",
            f"request-{mark}",
        )

    @property
    def all(self) -> list[str]:
        return list(vars(self).values())


def values_of(names: Names, voice: str) -> dict[str, Any]:
    """A value for every field of every request, by the ends of their paths; the rest are numbers and enums."""
    vector = [1.0] + [0.0] * (DIMENSIONS - 1)
    field = filter_pb2.Field(path="metadata.who")
    return {
        **{name: getattr(names, name) for name in ("space", "subject", "agent", "thread", "memory_id")},
        **{name: getattr(names, name) for name in ("message_id", "operation_id", "request_id")},
        "message_ids": [names.message_id],
        "memory.id": names.memory_id,
        "memories.id": names.memory_id,
        "message.id": names.message_id,
        "PutSpace.space.name": names.space,
        "GetSpace.name": names.space,
        "block.name": names.block,
        "GetBlock.name": names.block,
        "document.name": voice,
        "message.name": "Ann",
        **dict.fromkeys(("text", "query", "quote", "predicate", "reason", "guidance", "description"), voice),
        "metadata_json": json.dumps({"who": voice}),
        "filter": filter_pb2.Filter(exists=field),
        "update_mask": FieldMask(paths=["text", "metadata_json"]),
        "embedding": vector,
        "query_embedding": vector,
        "embedding_model": "janus/lexical-v1",
        "dimensions": DIMENSIONS,
        "space.backend": space_pb2.VECTOR_BACKEND_UNSPECIFIED,
        "model": "fast",
        "retention": Duration(seconds=10**9),
        # Known and valid for as long as anybody asks.
        **dict.fromkeys(("occurred_at", "valid_from"), Timestamp(seconds=1_700_000_000)),
        **dict.fromkeys(("valid_to", "expires_at", "superseded_at", "Recall.recorded_at"), Timestamp(seconds=10**10)),
        "valid_at": Timestamp(seconds=2 * 10**9),
        "size_limit": 4_096,
        "chunk_size": 400,
        "expected_version": 0,
        "PutBlock.expected_version": 1,
        # What an import says that was exported.
        "Import.space.name": names.space,
        "Import.turn.position": 1,
        "Import.memory.superseded_at": UNSET,
        "changed_by": "somebody",
        "sha256": UNSET,
        # Tokens are what an answer gave; a turn's own scope, or a scope's thread, is not allowed everywhere.
        **dict.fromkeys(("page_token", "consistency_token", "AppendMessages.turns.scope"), UNSET),
        **dict.fromkeys(("Erase.scope.agent", "Erase.scope.thread"), UNSET),
        **dict.fromkeys(("ForgetMessages.scope.agent", "ForgetMessages.scope.subject"), UNSET),
        **dict.fromkeys(("block.scope.thread", "GetBlock.scope.thread", "ListBlocks.scope.thread"), UNSET),
    }


def sealed(messages: Sequence[Message]) -> list[Message]:
    """An import with the checksum of what it holds."""
    records = [
        each for each in messages if isinstance(each, pb.ImportRequest) and each.WhichOneof("record") not in _AROUND
    ]
    sha256 = hashlib.sha256(b"".join(each.SerializeToString(deterministic=True) for each in records)).digest()
    completed = pb.ImportRequest(completed=pb.ExportCompleted(records=len(records), sha256=sha256))
    return [messages[0], *records, completed]


_AROUND = ("config", "completed", None)
