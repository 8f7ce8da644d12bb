"""The state machine of a run: which state may follow which, and what to do next.

Pure: no clock, no store. Every change of a run's state goes through
``advance`` inside the transaction that writes it::

    QUEUED ── start ──> RUNNING <── resume / wait ──> WAITING_TOOL | _APPROVAL | _INPUT
      │                   │  │                              │
      │                   │  └── request_cancel ──> CANCELLING <── request_cancel
      v                   v                              v
    CANCELLED | EXPIRED   COMPLETED | FAILED          CANCELLED
"""

from collections.abc import Collection, Sequence
from enum import StrEnum

from janus_orchestration.model import PendingKind, RunState, SideEffect, Step, StepKind


class Trigger(StrEnum):
    """What makes a run change its state."""

    START = "start"
    WAIT_TOOL = "wait_tool"
    WAIT_APPROVAL = "wait_approval"
    WAIT_INPUT = "wait_input"
    RESUME = "resume"
    REQUEST_CANCEL = "request_cancel"
    CONFIRM_CANCEL = "confirm_cancel"
    COMPLETE = "complete"
    FAIL = "fail"
    EXPIRE = "expire"


class IllegalTransition(Exception):
    """A state was asked to change in a way that the machine does not know."""

    def __init__(self, state: RunState, trigger: Trigger) -> None:
        super().__init__(f"a run in state {state.value} cannot {trigger.value}")
        self.state = state
        self.trigger = trigger


TERMINAL = frozenset({RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED, RunState.EXPIRED})
CALLS = frozenset({StepKind.TOOL_CALL, StepKind.HANDOFF})
"""Steps that answer a call; one of `agent.handoff` that was heeded is a handoff once it has ended."""
WAITING = frozenset({RunState.WAITING_TOOL, RunState.WAITING_APPROVAL, RunState.WAITING_INPUT})

_TRANSITIONS: dict[tuple[RunState, Trigger], RunState] = {
    (RunState.QUEUED, Trigger.START): RunState.RUNNING,
    # Nobody works on it, so there is nothing to wait for.
    (RunState.QUEUED, Trigger.REQUEST_CANCEL): RunState.CANCELLED,
    (RunState.QUEUED, Trigger.EXPIRE): RunState.EXPIRED,
    (RunState.RUNNING, Trigger.WAIT_TOOL): RunState.WAITING_TOOL,
    (RunState.RUNNING, Trigger.WAIT_APPROVAL): RunState.WAITING_APPROVAL,
    (RunState.RUNNING, Trigger.WAIT_INPUT): RunState.WAITING_INPUT,
    (RunState.RUNNING, Trigger.REQUEST_CANCEL): RunState.CANCELLING,
    (RunState.RUNNING, Trigger.COMPLETE): RunState.COMPLETED,
    (RunState.RUNNING, Trigger.FAIL): RunState.FAILED,
    # Asking twice changes nothing.
    (RunState.CANCELLING, Trigger.REQUEST_CANCEL): RunState.CANCELLING,
    (RunState.CANCELLING, Trigger.CONFIRM_CANCEL): RunState.CANCELLED,
    **{
        (waiting, trigger): target
        for waiting in WAITING
        for trigger, target in (
            (Trigger.RESUME, RunState.RUNNING),
            (Trigger.REQUEST_CANCEL, RunState.CANCELLING),
            (Trigger.EXPIRE, RunState.EXPIRED),
            (Trigger.FAIL, RunState.FAILED),
        )
    },
}


def advance(state: RunState, trigger: Trigger) -> RunState:
    """The state after the trigger. Raises IllegalTransition."""
    target = _TRANSITIONS.get((state, trigger))
    if target is None:
        raise IllegalTransition(state, trigger)
    return target


def waits_for(kinds: Collection[PendingKind]) -> Trigger:
    """How a run comes to wait for these: a person's word comes before a client's."""
    if PendingKind.APPROVAL in kinds:
        return Trigger.WAIT_APPROVAL
    return Trigger.WAIT_INPUT if PendingKind.INPUT in kinds else Trigger.WAIT_TOOL


def is_terminal(state: RunState) -> bool:
    """Whether nothing can follow."""
    return state in TERMINAL


def allowed(state: RunState) -> frozenset[Trigger]:
    """What can happen to a run in this state."""
    return frozenset(trigger for (source, trigger) in _TRANSITIONS if source is state)


def next_step(journal: Sequence[Step], *, recalls: bool, stores: bool) -> StepKind | None:
    """What a run does next, by its journal alone; None when only its end is left.

    It recalls, then asks the model and runs the tools that the answer asked
    for, over and over, until an answer asks for none, or hands over to another
    agent; then it stores. A step without an end was cut by the death of an owner
    and is done again.
    """
    asked = _last_model_call(journal)
    if asked is None:
        # Once the model was asked, recalling again would change what it was told.
        has_recalled = any(step.kind is StepKind.RECALL and step.ended_at is not None for step in journal)
        return StepKind.RECALL if recalls and not has_recalled else StepKind.MODEL_CALL
    if asked.ended_at is None:
        return StepKind.MODEL_CALL
    calls = tool_calls(journal)
    if any(step.ended_at is None for step in calls):
        return StepKind.TOOL_CALL
    if calls and handed_to(journal) is None:
        return StepKind.MODEL_CALL
    has_stored = any(step.kind is StepKind.STORE and step.ended_at is not None for step in journal)
    return StepKind.STORE if stores and not has_stored else None


def tool_calls(journal: Sequence[Step]) -> list[Step]:
    """The calls that the newest answer asked for, in its order; none when it asked for none.

    They are journalled together with the end of the model call.
    """
    asked = _last_model_call(journal)
    if asked is None:
        return []
    found = [step for step in journal if step.kind in CALLS and step.index > asked.index]
    return sorted(found, key=lambda step: step.index)


def handed_to(journal: Sequence[Step]) -> str | None:
    """The agent that goes on after the run."""
    return next((step.summary for step in journal if step.kind is StepKind.HANDOFF), None)


def _last_model_call(journal: Sequence[Step]) -> Step | None:
    calls = [step for step in journal if step.kind is StepKind.MODEL_CALL]
    return max(calls, key=lambda step: step.index, default=None)


class AfterUnknown(StrEnum):
    """What may be done about a call of which nobody knows what it has done."""

    RESEND = "resend"
    ASK = "ask"


def after_unknown(side_effect: SideEffect) -> AfterUnknown:
    """A call that may have run is sent again only where twice is as good as once."""
    return AfterUnknown.ASK if side_effect is SideEffect.AT_MOST_ONCE else AfterUnknown.RESEND
