"""What tool workers say and are told: decode, check, encode."""

import re
from dataclasses import dataclass
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, status_pb2

from janus_api.content.v1 import message_pb2
from janus_api.tools.v1 import tool_worker_service_pb2 as pb
from janus_kit.errors import InvalidArgument
from janus_kit.rpc_errors import to_status
from janus_kit.validate import Violations
from janus_orchestration.builtin_tools import PREFIXES
from janus_orchestration.dispatching import Answer, CallId, ClaimedCall, Registration, Report
from janus_orchestration.model import SideEffect, Tool, ToolOutput
from janus_orchestration.wire.content import (
    MAX_MEDIA_BYTES,
    MAX_TEXT_BYTES,
    time_of,
    timestamp,
)
from janus_orchestration.wire.tools import ProtobufTools, check_description, check_tool_name
from janus_orchestration.worker_session import (
    MOST_CREDITS,
    Beat,
    Closed,
    DrainAsked,
    Dropped,
    Given,
    Registered,
    Told,
)

_MAX_TOOLS = 256
_MAX_WORDS = 1_024
_MAX_RESULT_PARTS = 64
_TIMEOUT = timedelta(seconds=60)
_MIME_TYPE = re.compile(r"[\w.+-]{1,63}/[\w.+-]{1,64}", re.ASCII)

_SIDE_EFFECTS = {
    # The careful choice.
    pb.SIDE_EFFECT_UNSPECIFIED: SideEffect.AT_MOST_ONCE,
    pb.SIDE_EFFECT_READ_ONLY: SideEffect.READ_ONLY,
    pb.SIDE_EFFECT_IDEMPOTENT: SideEffect.IDEMPOTENT,
    pb.SIDE_EFFECT_AT_MOST_ONCE: SideEffect.AT_MOST_ONCE,
}


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sign of life, with the calls that the worker has."""

    calls: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MoreCredits:
    """More calls may come."""

    credits: int


@dataclass(frozen=True, slots=True)
class Draining:
    """No new calls, please."""

    reason: str


@dataclass(frozen=True, slots=True)
class Sign:
    """Nothing but that the worker lives: a call was begun, or something was said of a call that is none of ours."""


Said = Answer | Report | Heartbeat | MoreCredits | Draining | Sign


def registration_from(message: pb.ConnectRequest) -> Registration:
    """A checked registration. Raises InvalidArgument."""
    check = Violations()
    if not check.require(message.WhichOneof("message") == "register", "register", "must be the first message"):
        check.done()
    register = message.register
    check.id("register.worker_id", register.worker_id)
    check.between("register.credits", register.credits, 1, MOST_CREDITS)
    names: set[str] = set()
    tools = []
    if check.count("register.tools", register.tools, at_least=1, at_most=_MAX_TOOLS):
        for place, tool in enumerate(register.tools):
            tools.append(tool_from(check, f"register.tools[{place}]", tool, names))
    check.done()
    return Registration(register.worker_id, tuple(tools), register.credits)


def tool_from(check: Violations, where: str, tool: pb.Tool, names: set[str]) -> Tool:
    """A tool as it will be offered, and that its name is none of ``names``, which it joins."""
    check_tool_name(check, f"{where}.name", tool.name, names)
    check.require(not tool.name.startswith(PREFIXES), f"{where}.name", f"must not begin with {' or '.join(PREFIXES)}")
    check_description(check, where, tool.description, tool.parameters_schema_json)
    side_effect = _SIDE_EFFECTS.get(tool.side_effect)
    check.require(side_effect is not None, f"{where}.side_effect", "must be a value of the enum")
    timeout = time_of(check, f"{where}.timeout", tool, "timeout")
    return Tool(
        tool.name,
        tool.description,
        tool.parameters_schema_json,
        side_effect or SideEffect.AT_MOST_ONCE,
        timeout or _TIMEOUT,
    )


def said_from(message: pb.ConnectRequest) -> Said:
    """What a registered worker says. Raises InvalidArgument."""
    match message.WhichOneof("message"):
        case "started":
            return Sign()
        case "progress":
            return _report_from(message.progress)
        case "completed":
            call_id = CallId.parse(message.completed.call_id)
            return Sign() if call_id is None else Answer(call_id, result_of(message.completed))
        case "heartbeat":
            check = Violations()
            check.count("heartbeat.call_ids", message.heartbeat.call_ids, at_most=MOST_CREDITS)
            for place, text in enumerate(message.heartbeat.call_ids[:MOST_CREDITS]):
                check.id(f"heartbeat.call_ids[{place}]", text)
            check.done()
            return Heartbeat(tuple(dict.fromkeys(message.heartbeat.call_ids)))
        case "credits":
            check = Violations()
            check.between("credits.credits", message.credits.credits, 1, MOST_CREDITS)
            check.done()
            return MoreCredits(message.credits.credits)
        case "drain":
            check = Violations()
            check.length("drain.reason", message.drain.reason, at_most=_MAX_WORDS)
            check.done()
            return Draining(message.drain.reason)
        case "register":
            raise InvalidArgument("register", "must be sent once only")
        case _:
            raise InvalidArgument("message", "must be set")


def _report_from(progress: pb.CallProgress) -> Said:
    check = Violations()
    check.length("progress.message", progress.message, at_most=_MAX_WORDS)
    fraction = progress.fraction if progress.HasField("fraction") else None
    if fraction is not None:
        check.between("progress.fraction", fraction, 0, 1)
    check.done()
    call_id = CallId.parse(progress.call_id)
    return Sign() if call_id is None else Report(call_id, fraction, progress.message)


def result_of(completed: pb.CallCompleted) -> bytes:
    """The result as the model will see it. What breaks a rule is a failed call, which the model is told."""
    match completed.WhichOneof("outcome"):
        case "result":
            check = Violations()
            result = _checked(check, completed.result)
            if not check:
                return result.SerializeToString(deterministic=True)
            broken = "; ".join(f"{violation.field}: {violation.rule}" for violation in check.found[:3])
            return _failed(f"the tool ran, but its result breaks a rule: {broken}")
        case "error" if completed.error.code != code_pb2.OK:
            error = completed.error
            known = error.code in code_pb2.Code.values()
            name = code_pb2.Code.Name(error.code) if known else str(error.code)
            return _failed(f"{name}: {error.message}" if error.message else name)
        case _:
            return _failed("the tool's worker sent neither a result nor an error")


def _failed(text: str) -> bytes:
    return ProtobufTools().result("", ToolOutput(text, is_error=True))


def _checked(check: Violations, sent: message_pb2.ToolResult) -> message_pb2.ToolResult:
    """The parts that a result may have, and nothing else of them."""
    result = message_pb2.ToolResult(is_error=sent.is_error)
    if not check.count("result.parts", sent.parts, at_most=_MAX_RESULT_PARTS):
        return result
    for place, part in enumerate(sent.parts):
        where = f"result.parts[{place}]"
        kept = result.parts.add()
        match part.WhichOneof("kind"):
            case "text":
                fits = len(part.text.encode()) <= MAX_TEXT_BYTES
                check.require(fits, f"{where}.text", "must be at most 1 MiB of UTF-8")
                # No store of texts holds a NUL.
                kept.text = part.text.replace("\x00", "\ufffd")
            case "image":
                _check_media(check, f"{where}.image", part.image)
                kept.image.CopyFrom(part.image)
            case "document":
                check.length(f"{where}.document.title", part.document.title, at_most=256)
                _check_media(check, f"{where}.document.media", part.document.media)
                kept.document.CopyFrom(part.document)
            case _:
                check.add(where, "must be text, an image or a document")
    return result


def _check_media(check: Violations, where: str, media: message_pb2.Media) -> None:
    source = media.WhichOneof("source")
    if source == "data":
        check.size(f"{where}.data", media.data, at_least=1, at_most=MAX_MEDIA_BYTES)
    elif check.present(where, source is not None):
        is_fine = media.uri.startswith("https://") and len(media.uri) <= 2_048 and "\x00" not in media.uri
        check.require(is_fine, f"{where}.uri", "must be an https URL of at most 2048 characters")
    if source == "data" or media.mime_type:
        check.require(_MIME_TYPE.fullmatch(media.mime_type) is not None, f"{where}.mime_type", "must be a MIME type")


class Encoder:
    """What one worker is told, numbered."""

    def __init__(self, heartbeat_s: float, lease_s: float) -> None:
        self._heartbeat_s = heartbeat_s
        self._lease_s = lease_s
        self._sequence = 0

    def told_to(self, told: Told) -> pb.ConnectResponse:
        self._sequence += 1
        message = pb.ConnectResponse(sequence=self._sequence)
        match told:
            case Registered():
                message.registered.heartbeat_interval.CopyFrom(_seconds(self._heartbeat_s))
                message.registered.lease.CopyFrom(_seconds(self._lease_s))
            case Given(call):
                message.call.CopyFrom(_call_to(call))
            case Dropped(call_id, reason):
                message.cancel.call_id = call_id
                message.cancel.reason = reason
            case Beat(calls):
                message.heartbeat.call_ids.extend(map(str, calls))
                message.heartbeat.SetInParent()
            case DrainAsked(reason):
                message.drain.reason = reason
            case Closed(error):
                message.closed.status.CopyFrom(status_pb2.Status() if error is None else to_status(error))
        return message


def _call_to(call: ClaimedCall) -> pb.Call:
    return pb.Call(
        call_id=str(call.call_id),
        tool=call.tool,
        arguments_json=call.arguments_json,
        attempt=call.call_id.attempt,
        deadline=timestamp(call.deadline),
        idempotency_key=str(call.call_id.key),
        run_id=call.call_id.key.run_id,
        thread_id=call.thread_id,
        subject=call.subject,
        traceparent=call.traceparent,
    )


def _seconds(seconds: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration
