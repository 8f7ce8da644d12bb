"""What a tool call waits for before it can run or be answered, and how that is told.

Pure. A call is asked about only when its arguments are what the tool takes: no
person and no client sees a bad one.
"""

import hashlib
import json
from datetime import datetime, timedelta

from janus_kit.ids import new_id
from janus_orchestration.events import ApprovalRequested, Event, InputRequested, ToolCallRequested, ToolCallStarted
from janus_orchestration.model import Pending, PendingKind, ToolCall, ToolOutput, Verdict
from janus_orchestration.tools import BadArguments, Offered, arguments_of


def arguments_sha256(call: ToolCall) -> bytes:
    """What a consent is bound to."""
    return hashlib.sha256(call.arguments_json.encode()).digest()


def before_running(step: int, call: ToolCall, offered: Offered | None, consent: bytes, now: datetime) -> Pending | None:
    """What the call of a step has to wait for now; None when it can run, or is refused by what runs it.

    ``consent`` is the hash of the arguments that a person has consented to.
    """
    if offered is None:
        return None
    try:
        arguments = arguments_of(offered.tool, call.arguments_json)
    except BadArguments:
        return None
    if offered.needs_approval and consent != arguments_sha256(call):
        reason = f"every call of '{call.name}' needs consent"
        return _pending(
            PendingKind.APPROVAL, step, call, now + offered.approved_within, offered.without_approval, reason
        )
    due = now + timedelta(seconds=offered.timeout_s)
    match offered.tool.answered_by:
        case PendingKind.TOOL:
            return _pending(PendingKind.TOOL, step, call, due, Verdict.EXPIRED)
        case PendingKind.INPUT:
            schema = json.dumps(arguments["schema"], ensure_ascii=False) if "schema" in arguments else ""
            question = str(arguments["question"]).replace("\x00", "\ufffd")
            return _pending(PendingKind.INPUT, step, call, due, Verdict.EXPIRED, question, schema)
        case PendingKind.AGENT:
            return _pending(PendingKind.AGENT, step, call, due, Verdict.DECLINED)
    return None


def before_another_try(step: int, call: ToolCall, offered: Offered, why: str, now: datetime) -> Pending:
    """Consent to running a call again whose outcome is not known.

    Time never gives it: an agent's policy is about calls that were not begun.
    """
    due = now + offered.approved_within
    reason = f"{why}; whether the call did anything is not known, and running it again may do it twice"
    return _pending(PendingKind.APPROVAL, step, call, due, Verdict.DECLINED, reason, is_retry=True)


def _pending(
    kind: PendingKind,
    step: int,
    call: ToolCall,
    expires_at: datetime,
    on_expiry: Verdict,
    text: str = "",
    schema_json: str = "",
    *,
    is_retry: bool = False,
) -> Pending:
    return Pending(
        id=new_id("ask"),
        step=step,
        kind=kind,
        call=call,
        arguments_sha256=arguments_sha256(call),
        expires_at=expires_at,
        on_expiry=on_expiry,
        is_retry=is_retry,
        text=text,
        schema_json=schema_json,
        child_run=new_id("run") if kind is PendingKind.AGENT else "",
    )


def told(pending: Pending, asked_in: int) -> Event:
    """The event that asks; ``asked_in`` is the step of the model call."""
    match pending.kind:
        case PendingKind.APPROVAL:
            return ApprovalRequested(pending)
        case PendingKind.INPUT:
            return InputRequested(pending)
        case PendingKind.AGENT:
            return ToolCallStarted(pending.call.call_id, "", 1, pending.child_run)
    return ToolCallRequested(asked_in, pending.call, client_side=True)


def declined(pending: Pending) -> ToolOutput:
    """What the model reads of a call that may not run, or not run again, or was not answered in time."""
    if pending.kind is PendingKind.AGENT:
        return ToolOutput("the agent did not answer in time", is_error=True)
    text = "the call was declined" if pending.in_time else "nobody consented to the call in time"
    if pending.is_retry:
        text = (
            f"the call was begun, whether it did anything is not known, and {text.replace('the call', 'another try')}"
        )
    comment = pending.answer.decode()
    return ToolOutput(f"{text}: {comment}" if comment else text, is_error=True)


def answered(pending: Pending) -> ToolOutput:
    """What the model reads of an answer: plain text as it is, else JSON."""
    text = pending.answer.decode()
    return ToolOutput(text if pending.schema_json else str(json.loads(text)))


def left_open(pending: Pending | None, how: str, *, is_begun: bool = True) -> ToolOutput:
    """The result of a call that has none when its run ends; ``how`` as in `was cancelled`."""
    if not is_begun or (pending is not None and pending.kind is PendingKind.APPROVAL and not pending.is_retry):
        return ToolOutput(f"the run {how} before the call was begun", is_error=True)
    if pending is not None and pending.kind is PendingKind.INPUT:
        return ToolOutput(f"the run {how} before the question was answered", is_error=True)
    if pending is not None and pending.kind is PendingKind.AGENT:
        return ToolOutput(f"the run {how} before the agent answered", is_error=True)
    return ToolOutput(f"the run {how} before the tool answered; whether it did anything is not known", is_error=True)
