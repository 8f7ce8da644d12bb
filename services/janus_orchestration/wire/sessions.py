"""What a client says in a session: decode, check."""

import hashlib
from collections.abc import AsyncIterator
from datetime import datetime

from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_kit.clock import Clock
from janus_kit.errors import InvalidArgument, JanusError
from janus_kit.rpc_errors import to_status
from janus_kit.validate import Violations
from janus_orchestration.model import Cursor
from janus_orchestration.runs import Asking
from janus_orchestration.sessions import Cancel, Config, Rejected, Said, Unfit
from janus_orchestration.wire import pending
from janus_orchestration.wire.runs import asked_from, cursor_from

_MOST_REASON = 1_024


async def config_from(requests: AsyncIterator[pb.SessionRequest]) -> Config:
    """The first message. Raises InvalidArgument."""
    first = await anext(requests, None)
    if first is None or first.WhichOneof("message") != "config":
        raise InvalidArgument("config", "must be the first message")
    sent = first.config
    check = Violations()
    check.id("config.thread_id", sent.thread_id)
    check.id("config.agent", sent.agent, optional=True)
    check.id("config.resume_run_id", sent.resume_run_id, optional=True)
    if sent.HasField("resume_after"):
        check.require(bool(sent.resume_run_id), "config.resume_after", "must go with resume_run_id")
    check.done()
    after = cursor_from(sent.resume_after, "config.resume_after") if sent.HasField("resume_after") else Cursor()
    return Config(sent.thread_id, sent.agent, sent.resume_run_id, after)


async def said_from(requests: AsyncIterator[pb.SessionRequest], config: Config, clock: Clock) -> AsyncIterator[Said]:
    """What follows; a message that is none does not end the session."""
    while True:
        try:
            request = await anext(requests, None)
            if request is None:
                return
            said = _said(request, config, clock.now())
        except JanusError as error:
            said = Unfit(error)
        yield said


def _said(request: pb.SessionRequest, config: Config, now: datetime) -> Said:
    match request.WhichOneof("message"):
        case "input":
            return _asking(request.input, config, now)
        case "tool_results":
            return pending.results_from(request.tool_results, True)
        case "approval":
            return pending.approval_from(request.approval, True)
        case "answer":
            return pending.answer_from(request.answer, True)
        case "cancel":
            check = Violations()
            check.id("run_id", request.cancel.run_id, optional=True)
            check.length("reason", request.cancel.reason, at_most=_MOST_REASON)
            check.done()
            return Cancel(request.cancel.run_id, request.cancel.reason)
        case "config":
            raise InvalidArgument("config", "must be sent once, first")
    raise InvalidArgument("message", "must be set")


def _asking(sent: pb.RunInput, config: Config, now: datetime) -> Asking:
    if sent.thread_id not in ("", config.thread_id):
        raise InvalidArgument("input.thread_id", "must be the session's thread, or empty")
    whole = pb.RunInput()
    whole.CopyFrom(sent)
    whole.thread_id = config.thread_id
    whole.agent = sent.agent or config.agent
    asked = asked_from(whole, True, now)
    return Asking(
        method="Session",
        thread_id=asked.thread_id,
        agent=asked.agent,
        messages=asked.messages,
        options=asked.options,
        request_id=asked.request_id,
        body_hash=hashlib.sha256(whole.SerializeToString(deterministic=True)).digest(),
    )


def rejected_to(rejected: Rejected) -> pb.SessionRejected:
    return pb.SessionRejected(request_sequence=rejected.place, status=to_status(rejected.error))
