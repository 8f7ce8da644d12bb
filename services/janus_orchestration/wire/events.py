"""Events of a run in their wire form."""

from datetime import datetime

from google.rpc import status_pb2

from janus_api.content.v1 import message_pb2
from janus_api.inference.v1 import event_pb2 as inference_pb2
from janus_api.memory.v1 import recall_pb2, record_pb2
from janus_api.orchestration.v1 import event_pb2 as pb
from janus_api.orchestration.v1 import run_pb2
from janus_kit.errors import Aborted, DeadlineExceeded, JanusError, ResourceExhausted, Unavailable
from janus_kit.rpc_errors import to_status
from janus_orchestration import events
from janus_orchestration.model import Cursor, Failure, Recalled, RecalledHit, Usage
from janus_orchestration.wire.content import duration, moment_of, text_of, timestamp, usage_to
from janus_orchestration.wire.pending import VERDICTS, approval_to, input_to
from janus_orchestration.wire.tools import call_to

_RETRYABLE = (Unavailable, ResourceExhausted, DeadlineExceeded, Aborted)
_FINAL = frozenset({"MESSAGE_TOO_LARGE", "BUDGET_EXCEEDED", "RUN_GIVEN_UP"})


class ProtobufEvents:
    """The codec: one encoding, kept by every store and given to every watcher."""

    def encode(self, run_id: str, cursor: Cursor, at: datetime, event: events.Event) -> bytes:
        message = pb.RunEvent(
            run_id=run_id,
            cursor=run_pb2.Cursor(epoch=cursor.epoch, sequence=cursor.sequence),
            at=timestamp(at),
        )
        _fill(message, event)
        return message.SerializeToString()

    def recalled(self, wire: bytes) -> Recalled:
        recalled = pb.RunEvent.FromString(wire).memory_recalled
        return Recalled(
            tuple(hit_from(hit) for hit in recalled.hits),
            tuple(recalled.degraded),
            recalled.took.ToTimedelta(),
            recalled.summary,
        )

    def goes_on(self, wire: bytes) -> str:
        return pb.RunEvent.FromString(wire).handoff.child_run_id

    def failure(self, error: JanusError) -> Failure:
        return Failure(
            to_status(error).SerializeToString(deterministic=True),
            error.retry_after is not None or (isinstance(error, _RETRYABLE) and error.reason not in _FINAL),
            error.reason,
        )


def _fill(message: pb.RunEvent, event: events.Event) -> None:
    match event:
        case events.RunQueued():
            message.run_queued.thread_id = event.thread_id
            message.run_queued.ahead = event.ahead
        case events.RunStarted():
            message.run_started.thread_id = event.thread_id
            message.run_started.agent = event.agent
            message.run_started.agent_version = event.agent_version
        case events.MemoryRecalled(recalled=recalled):
            message.memory_recalled.SetInParent()
            for hit in recalled.hits:
                message.memory_recalled.hits.add().ParseFromString(hit.wire)
            message.memory_recalled.degraded.extend(recalled.degraded)
            message.memory_recalled.took.CopyFrom(duration(recalled.took))
            message.memory_recalled.summary = recalled.summary
        case events.ModelSaid():
            message.model.step = event.step
            message.model.event.ParseFromString(event.wire)
        case events.ToolCallRequested():
            message.tool_call_requested.step = event.step
            message.tool_call_requested.call.CopyFrom(call_to(event.call))
            message.tool_call_requested.client_side = event.client_side
        case events.ToolCallStarted():
            message.tool_call_started.call_id = event.call_id
            message.tool_call_started.worker_id = event.worker_id
            message.tool_call_started.attempt = event.attempt
            message.tool_call_started.child_run_id = event.child_run
        case events.ToolCallProgress():
            message.tool_call_progress.call_id = event.call_id
            message.tool_call_progress.message = event.message
            if event.fraction is not None:
                message.tool_call_progress.fraction = event.fraction
        case events.ToolCallCompleted():
            message.tool_call_completed.result.ParseFromString(event.result)
            message.tool_call_completed.took.CopyFrom(duration(event.took))
        case events.ApprovalRequested(pending=pending):
            message.approval_requested.approval.CopyFrom(approval_to(pending))
            message.approval_requested.expires_at.CopyFrom(timestamp(pending.expires_at))
        case events.ApprovalResolved():
            message.approval_resolved.approval_id = event.approval_id
            message.approval_resolved.decision = VERDICTS[event.verdict]
            message.approval_resolved.decided_by = event.decided_by
            message.approval_resolved.comment = event.comment
        case events.InputRequested(pending=pending):
            message.input_requested.input.CopyFrom(input_to(pending))
            message.input_requested.expires_at.CopyFrom(timestamp(pending.expires_at))
        case events.Handoff():
            message.handoff.from_agent = event.from_agent
            message.handoff.to_agent = event.to_agent
            message.handoff.child_run_id = event.child_run
        case events.BudgetWarning():
            message.budget_warning.budget = event.budget
            message.budget_warning.used = event.used
            message.budget_warning.limit = event.limit
        case events.MessageCommitted():
            message.message_committed.message.CopyFrom(message_pb2.Message.FromString(event.message.wire))
            message.message_committed.position = event.position
            message.message_committed.degraded.extend(event.degraded)
        case events.AttemptRestarted():
            message.attempt_restarted.discard_after.epoch = event.discard_after.epoch
            message.attempt_restarted.discard_after.sequence = event.discard_after.sequence
            message.attempt_restarted.step = event.step
            message.attempt_restarted.attempt = event.attempt
        case events.ReplayCompacted():
            message.replay_compacted.through.epoch = event.through.epoch
            message.replay_compacted.through.sequence = event.through.sequence
        case events.RunCompleted():
            message.run_completed.usage.CopyFrom(usage_to(event.usage))
            message.run_completed.finish_reason = inference_pb2.FinishReason.ValueType(event.finish_reason)
        case events.RunFailed():
            message.run_failed.status.CopyFrom(status_pb2.Status.FromString(event.failure.status))
            message.run_failed.retryable = event.failure.retryable
            _set_usage(message.run_failed, event.usage)
        case events.RunCancelled():
            message.run_cancelled.reason = event.reason
            message.run_cancelled.rolled_back = event.rolled_back
            _set_usage(message.run_cancelled, event.usage)
        case events.RunExpired():
            message.run_expired.waited_for = event.waited_for.value
            message.run_expired.status.CopyFrom(status_pb2.Status.FromString(event.failure.status))
            _set_usage(message.run_expired, event.usage)
        case _:
            raise TypeError(f"no wire form for {type(event).__name__}")


def _set_usage(message: pb.RunFailed | pb.RunCancelled | pb.RunExpired, usage: Usage | None) -> None:
    if usage is not None:
        message.usage.CopyFrom(usage_to(usage))


def hit_from(hit: recall_pb2.RecallHit) -> RecalledHit:
    """What a prompt shows of a hit."""
    wire = hit.SerializeToString()
    if hit.WhichOneof("record") == "memory":
        memory = hit.memory
        kind = record_pb2.MemoryKind.Name(memory.kind).removeprefix("MEMORY_KIND_").lower()
        has_start = memory.HasField("valid_from")
        has_record = memory.HasField("recorded_at")
        when = memory.valid_from if has_start else memory.recorded_at
        return RecalledHit(
            record_id=memory.id,
            speaker="",
            text=memory.text,
            thread_id=memory.scope.thread,
            kind=kind.replace("_", " "),
            occurred_at=moment_of(when) if has_start or has_record else None,
            wire=wire,
        )
    turn = hit.turn
    role = message_pb2.Role.Name(turn.message.role).removeprefix("ROLE_").lower()
    when = turn.occurred_at if turn.HasField("occurred_at") else turn.message.created_at
    return RecalledHit(
        record_id=turn.message.id,
        speaker=turn.message.name or role,
        text=text_of(turn.message),
        thread_id=turn.scope.thread,
        kind="turn",
        occurred_at=moment_of(when) if when.ByteSize() else None,
        wire=wire,
    )
