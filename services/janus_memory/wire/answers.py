"""Records and answers, encoded."""

import json
from collections.abc import Sequence

from janus_api.content.v1 import message_pb2 as content
from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import recall_pb2, record_pb2, space_pb2
from janus_memory.append import Appended
from janus_memory.model import Hit, Memory, Recalled, Space, Span, Turn, Weights
from janus_memory.remember import Remembered
from janus_memory.window import MAX_BYTES
from janus_memory.windowing import Window
from janus_memory.wire.content import leave_out_bytes
from janus_memory.wire.values import duration, scope_to, stamp

# Tag and length of a hit.
_HIT_FRAME_BYTES = 6


def turn_to(turn: Turn, *, in_hit: bool = False) -> record_pb2.Turn:
    """A turn as it was said, with what the server added; in a hit without what is not text."""
    message = content.Message.FromString(turn.content)
    if in_hit:
        leave_out_bytes(message.parts)
    message.id = turn.id
    if not message.HasField("created_at"):
        message.created_at.FromDatetime(turn.recorded_at)
    return record_pb2.Turn(
        message=message,
        scope=scope_to(turn.scope),
        occurred_at=stamp(turn.occurred_at),
        position=turn.position,
        metadata_json=turn.metadata_json,
        recorded_at=stamp(turn.recorded_at),
    )


def memory_to(memory: Memory) -> record_pb2.Memory:
    """A version of a memory; its vector is input only."""
    return record_pb2.Memory(
        id=memory.id,
        version=memory.version,
        kind=record_pb2.MemoryKind.ValueType(memory.kind - 1),
        text=memory.text,
        scope=scope_to(memory.scope),
        predicate=memory.predicate,
        provenance=[record_pb2.Provenance(**source) for source in json.loads(memory.provenance_json)],
        valid_from=stamp(memory.valid_from),
        valid_to=stamp(memory.valid_to),
        recorded_at=stamp(memory.recorded_at),
        superseded_at=stamp(memory.superseded_at),
        importance=memory.importance,
        expires_at=stamp(memory.expires_at),
        metadata_json=memory.metadata_json,
    )


def appended_to(done: Appended) -> pb.AppendMessagesResponse:
    return pb.AppendMessagesResponse(
        message_ids=done.ids,
        first_position=done.first_position,
        last_position=done.last_position,
        consistency_token=done.token,
        searchable=done.searchable,
        degraded=done.degraded,
    )


def remembered_to(done: Remembered) -> pb.RememberResponse:
    return pb.RememberResponse(
        memory_ids=done.ids,
        consistency_token=done.token,
        searchable=done.searchable,
        degraded=done.degraded,
    )


def window_to(window: Window) -> pb.GetWindowResponse:
    return pb.GetWindowResponse(
        turns=map(turn_to, window.turns),
        tokens=window.tokens,
        summary=window.summary,
        omitted=window.omitted,
        degraded=window.degraded,
    )


def recalled_to(found: Recalled, packed: bool) -> recall_pb2.RecallResponse:
    """An answer that every client can receive: the best hits that fit, at least one."""
    answer = recall_pb2.RecallResponse(
        degraded=found.degraded,
        packed=_packed(found.spans) if packed else None,
        embedding_model=found.model,
    )
    size = answer.ByteSize()
    for each in found.hits:
        hit = _hit(each)
        size += hit.ByteSize() + _HIT_FRAME_BYTES
        if answer.hits and size > MAX_BYTES:
            break
        answer.hits.append(hit)
    return answer


def space_to(space: Space) -> space_pb2.Space:
    weights = {name: getattr(space.weights, name) for name in Weights.__slots__}
    given = {name: value for name, value in weights.items() if value is not None}
    return space_pb2.Space(
        name=space.name,
        backend=space_pb2.VectorBackend.ValueType(space.backend),
        embedding_model=space.model,
        dimensions=space.dimensions,
        weights=recall_pb2.RecallWeights(**given) if given else None,
        description=space.description,
        created_at=stamp(space.created_at),
        version=space.version,
        index_backlog=space.backlog,
        retention=duration(space.retention),
    )


def _hit(hit: Hit) -> recall_pb2.RecallHit:
    details = [
        recall_pb2.ScoreDetail(
            leg=detail.leg,
            raw=detail.raw,
            standardised=detail.standardised,
            weight=detail.weight,
            contribution=detail.contribution,
            rank=detail.rank,
        )
        for detail in hit.details
    ]
    if isinstance(hit.record, Turn):
        return recall_pb2.RecallHit(turn=turn_to(hit.record, in_hit=True), score=hit.score, details=details)
    return recall_pb2.RecallHit(memory=memory_to(hit.record), score=hit.score, details=details)


def _packed(spans: Sequence[Span]) -> recall_pb2.PackedContext:
    return recall_pb2.PackedContext(
        spans=[
            recall_pb2.PackedSpan(
                text=span.text,
                record_ids=span.record_ids,
                context_ids=span.context_ids,
                occurred_at=stamp(span.occurred_at),
                score=span.score,
            )
            for span in spans
        ],
        tokens=sum(span.tokens for span in spans),
    )
