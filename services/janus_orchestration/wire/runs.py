"""Runs: decode and check what starts one, encode what one is."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from google.rpc import status_pb2

from janus_api.content.v1 import message_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_api.orchestration.v1 import run_pb2
from janus_kit.validate import Violations
from janus_orchestration.model import (
    Cursor,
    Message,
    Pending,
    Role,
    Run,
    RunOptions,
    RunState,
    Step,
    StepKind,
    ThreadMessage,
)
from janus_orchestration.wire.agents import budgets_from
from janus_orchestration.wire.content import messages_from, timestamp, usage_to
from janus_orchestration.wire.pending import pending_to

_STATES = {state: run_pb2.RunState.Value(f"RUN_STATE_{state.name}") for state in RunState}
_MOST_STATES = 64
_KINDS = {kind: run_pb2.StepKind.Value(f"STEP_KIND_{kind.name}") for kind in StepKind}
_LABEL = re.compile(r"[a-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class Asked:
    """A checked RunInput."""

    thread_id: str
    agent: str
    messages: tuple[Message, ...]
    options: RunOptions
    request_id: str


def asked_from(sent: pb.RunInput, is_set: bool, now: datetime) -> Asked:
    """Raises InvalidArgument with the paths of StartRun and Converse (`input.…`)."""
    check = Violations()
    if not check.present("input", is_set):
        check.done()
    check.id("input.thread_id", sent.thread_id)
    check.id("input.agent", sent.agent, optional=True)
    check.length("input.model", sent.model, at_most=256)
    check.id("input.request_id", sent.request_id, optional=True)
    # What is too many is not looked at: hundreds of thousands of tiny items fit into one request.
    if not check.count("input.labels", sent.labels, at_most=16):
        check.done()
    for key, value in sorted(sent.labels.items()):
        check.require(
            _LABEL.fullmatch(key) is not None, "input.labels", "keys must be 1 to 64 of a-z, 0-9, '_', '.', '-'"
        )
        check.length("input.labels", value, at_most=128)
    messages = messages_from(
        check, "input.messages", sent.messages, at_least=1, at_most=64, roles=(Role.USER,), now=now
    )
    budgets = budgets_from(check, "input.budgets", sent.budgets) if sent.HasField("budgets") else None
    check.done()
    return Asked(
        sent.thread_id,
        sent.agent,
        tuple(messages),
        RunOptions(sent.model, budgets, tuple(sorted(sent.labels.items()))),
        sent.request_id,
    )


def states_from(sent: Sequence[int]) -> frozenset[RunState]:
    """States to look for, each once; none for all."""
    check = Violations()
    if check.count("states", sent, at_most=_MOST_STATES):
        for place, number in enumerate(sent):
            check.require(number in _STATES.values(), f"states[{place}]", "must be a state of the enum")
    check.done()
    return frozenset(state for state, number in _STATES.items() if number in sent)


def cursor_from(cursor: run_pb2.Cursor, where: str) -> Cursor:
    check = Violations()
    check.require(cursor.epoch >= 0, f"{where}.epoch", "must not be negative")
    check.require(cursor.sequence >= 0, f"{where}.sequence", "must not be negative")
    check.done()
    return Cursor(cursor.epoch, cursor.sequence)


def cursor_to(cursor: Cursor) -> run_pb2.Cursor:
    return run_pb2.Cursor(epoch=cursor.epoch, sequence=cursor.sequence)


def run_to(
    run: Run,
    last: Cursor,
    waiting_for: Sequence[Pending] = (),
    steps: Sequence[Step] = (),
    output: Sequence[ThreadMessage] = (),
) -> run_pb2.Run:
    message = run_pb2.Run(
        id=run.id,
        thread_id=run.thread_id,
        agent=run.agent,
        agent_version=run.agent_version,
        state=_STATES[run.state],
        created_at=timestamp(run.created_at),
        last_event=cursor_to(last),
        steps=[_step_to(step) for step in steps],
        parent_run_id=run.parent_run,
        waiting_for=map(pending_to, waiting_for),
        output=[message_pb2.Message.FromString(item.message.wire) for item in output],
        labels=dict(run.options.labels),
        takeovers=run.takeovers,
    )
    if run.started_at is not None:
        message.started_at.CopyFrom(timestamp(run.started_at))
    if run.ended_at is not None:
        message.ended_at.CopyFrom(timestamp(run.ended_at))
    if run.usage is not None:
        message.usage.CopyFrom(usage_to(run.usage))
    if run.error:
        message.error.CopyFrom(status_pb2.Status.FromString(run.error))
    return message


def _step_to(step: Step) -> run_pb2.Step:
    message = run_pb2.Step(
        index=step.index,
        kind=_KINDS[step.kind],
        attempts=step.attempts,
        started_at=timestamp(step.started_at),
        summary=step.summary,
    )
    if step.ended_at is not None:
        message.ended_at.CopyFrom(timestamp(step.ended_at))
    if step.usage is not None:
        message.usage.CopyFrom(usage_to(step.usage))
    if step.error:
        message.error.CopyFrom(status_pb2.Status.FromString(step.error))
    return message
