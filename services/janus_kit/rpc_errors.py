"""The one mapping between Janus's errors and what travels: gRPC status, HTTP code.

``to_status`` packs ``google.rpc.Status`` with typed details; ``from_rpc`` is its
inverse for a service that re-raises what another service answered.
"""

from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from janus_kit import errors
from janus_kit.errors import JanusError

DOMAIN = "janus"

# A status travels in HTTP/2 trailers, and peers commonly refuse more than 8 KiB
# of those: texts and lists are cut so that a refusal always arrives.
_MAX_MESSAGE_CHARS = 512
_MAX_TEXT_CHARS = 200
_MAX_VIOLATIONS = 12
_MAX_METADATA = 12

_HTTP = {
    "INVALID_ARGUMENT": 400,
    "OUT_OF_RANGE": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ABORTED": 409,
    "ALREADY_EXISTS": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "DATA_LOSS": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}

_PLAIN: dict[str, type[JanusError]] = {
    "PERMISSION_DENIED": errors.PermissionDenied,
    "OUT_OF_RANGE": errors.OutOfRange,
    "DATA_LOSS": errors.DataLoss,
    "UNAUTHENTICATED": errors.Unauthenticated,
    "CANCELLED": errors.Cancelled,
    "UNIMPLEMENTED": errors.Unimplemented,
}


def http_status(error: JanusError) -> int:
    """The HTTP status code that says the same."""
    # One refusal that HTTP tells apart: smaller, not later, is what would help.
    return 413 if error.reason == "MESSAGE_TOO_LARGE" else _HTTP[error.code]


def grpc_code(error: JanusError) -> grpc.StatusCode:
    """The gRPC status code of the error."""
    return grpc.StatusCode[error.code]


def to_status(error: JanusError) -> status_pb2.Status:
    """The error as a ``google.rpc.Status`` with its details, bounded in size."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    for key, value in list(error.metadata.items())[:_MAX_METADATA]:
        info.metadata[_text(key)] = _text(value)
    details: list[Message] = [info, *_details(error)]
    if error.retry_after is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=_duration(error.retry_after)))
    return status_pb2.Status(
        code=code_pb2.Code.Value(error.code),
        message=_text(error.message, _MAX_MESSAGE_CHARS),
        details=[_packed(detail) for detail in details],
    )


def to_trailers(error: JanusError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, Any], ...]]:
    """Code, message and trailing metadata for ``context.abort``.

    ``grpc.aio`` has no ``abort_with_status``. With RetryInfo goes
    ``grpc-retry-pushback-ms``, which gRPC's own retries obey.
    """
    status = rpc_status.to_status(to_status(error))
    trailers = tuple(status.trailing_metadata)
    if error.retry_after is not None:
        trailers += (("grpc-retry-pushback-ms", str(max(0, round(error.retry_after * 1000)))),)
    return status.code, status.details, trailers


def from_rpc(error: grpc.aio.AioRpcError, *, part: str = "upstream") -> JanusError:
    """What another service answered, as the error to raise here.

    Answers of Janus keep reason, text, metadata and details. Statuses that
    gRPC itself made (connection refused, deadline, message too large) hold
    addresses and internals: they become a Janus error with ``part`` as the
    name of what was called.
    """
    status = _status_of(error)
    if status is None:
        return _from_transport(error.code(), error.details() or "", part)
    return from_status(status, part=part)


def from_status(status: status_pb2.Status, *, part: str = "upstream") -> JanusError:
    """The inverse of ``to_status``, also for statuses inside messages."""
    info = error_details_pb2.ErrorInfo()
    found = _unpacked(status)
    if not any(_is(detail, info) for detail in found):
        return _from_transport(_code_of(status.code), "", part)
    info = next(detail for detail in found if isinstance(detail, error_details_pb2.ErrorInfo))
    metadata = dict(info.metadata)
    retry_after = next(
        (
            detail.retry_delay.ToTimedelta().total_seconds()
            for detail in found
            if isinstance(detail, error_details_pb2.RetryInfo)
        ),
        None,
    )
    name = code_pb2.Code.Name(status.code) if status.code in code_pb2.Code.values() else "UNKNOWN"
    resource = next((d for d in found if isinstance(d, error_details_pb2.ResourceInfo)), None)
    match name:
        case "INVALID_ARGUMENT":
            violations = [
                errors.FieldViolation(violation.field, violation.description)
                for detail in found
                if isinstance(detail, error_details_pb2.BadRequest)
                for violation in detail.field_violations
            ] or [errors.FieldViolation("request", status.message)]
            return errors.InvalidArgument.of(violations, reason=info.reason, metadata=metadata)
        case "FAILED_PRECONDITION":
            subject = next(
                (
                    violation.subject
                    for detail in found
                    if isinstance(detail, error_details_pb2.PreconditionFailure)
                    for violation in detail.violations
                ),
                "",
            )
            return errors.FailedPrecondition(info.reason, status.message, metadata, subject=subject)
        case "ABORTED":
            return errors.Aborted(info.reason, status.message, metadata, retry_after)
        case "ALREADY_EXISTS":
            kind, owner = _resource(resource)
            return errors.AlreadyExists(info.reason, status.message, kind, owner, metadata)
        case "NOT_FOUND":
            kind, owner = _resource(resource)
            return errors.NotFound(kind, owner, reason=info.reason, message=status.message, metadata=metadata)
        case "RESOURCE_EXHAUSTED":
            quota = next(
                (
                    (violation.subject, violation.description)
                    for detail in found
                    if isinstance(detail, error_details_pb2.QuotaFailure)
                    for violation in detail.violations
                ),
                None,
            )
            return errors.ResourceExhausted(info.reason, status.message, metadata, retry_after, quota)
        case "UNAVAILABLE":
            return errors.Unavailable(
                metadata.get("part", ""),
                status.message,
                retry_after=retry_after,
                reason=info.reason,
                metadata=metadata,
            )
        case "DEADLINE_EXCEEDED":
            return errors.DeadlineExceeded(metadata.get("leg", "call"), status.message, metadata, retry_after)
        case "INTERNAL":
            return errors.Internal(metadata.get("incident_id", "unknown"))
    kind_of_error = _PLAIN.get(name)
    if kind_of_error is None:
        return errors.Internal(metadata.get("incident_id", "unknown"))
    return kind_of_error(info.reason, status.message, metadata)


def _details(error: JanusError) -> list[Message]:
    """The details that belong to the kind of error, beside ErrorInfo and RetryInfo."""
    match error:
        case errors.InvalidArgument():
            bad_request = error_details_pb2.BadRequest()
            for field, rule in error.violations[:_MAX_VIOLATIONS]:
                bad_request.field_violations.add(field=_text(field), description=_text(rule))
            return [bad_request]
        case errors.FailedPrecondition():
            precondition = error_details_pb2.PreconditionFailure()
            precondition.violations.add(
                type=error.reason,
                subject=_text(error.subject),
                description=_text(error.message),
            )
            return [precondition]
        case errors.NotFound() | errors.AlreadyExists():
            return [
                error_details_pb2.ResourceInfo(
                    resource_type=_text(error.resource_type),
                    resource_name=_text(error.resource_name),
                )
            ]
        case errors.ResourceExhausted() if error.quota is not None:
            quota = error_details_pb2.QuotaFailure()
            quota.violations.add(subject=_text(error.quota.subject), description=_text(error.quota.description))
            return [quota]
    return []


def _from_transport(code: grpc.StatusCode, text: str, part: str) -> JanusError:
    """A status that no Janus server made; its text is not for callers."""
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return errors.Unavailable(part)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return errors.DeadlineExceeded("call", f"the deadline passed while calling {part}")
        case grpc.StatusCode.CANCELLED:
            return errors.Cancelled()
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than max" in text:
            return errors.ResourceExhausted(
                "MESSAGE_TOO_LARGE", f"a message to or from {part} is larger than the limit"
            )
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return errors.ResourceExhausted("OVERLOADED", f"{part} is at its limit", None, 1.0)
        case grpc.StatusCode.UNIMPLEMENTED:
            return errors.Unimplemented(message=f"{part} does not offer this call")
    return errors.Unavailable(part, f"{part} answered with a failure")


def _status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            try:
                status = status_pb2.Status.FromString(value if isinstance(value, bytes) else value.encode())
            except (DecodeError, ValueError):  # another server's broken trailer
                return None
            return status if status.code == error.code().value[0] else None
    return None


def _unpacked(status: status_pb2.Status) -> list[Message]:
    known: tuple[type[Message], ...] = (
        error_details_pb2.ErrorInfo,
        error_details_pb2.BadRequest,
        error_details_pb2.PreconditionFailure,
        error_details_pb2.ResourceInfo,
        error_details_pb2.QuotaFailure,
        error_details_pb2.RetryInfo,
    )
    found: list[Message] = []
    for packed in status.details:
        for kind in known:
            message = kind()
            if packed.Is(message.DESCRIPTOR) and packed.Unpack(message):
                found.append(message)
    return found


def _is(detail: Message, kind: Message) -> bool:
    return isinstance(detail, type(kind)) and getattr(detail, "domain", DOMAIN) == DOMAIN


def _resource(resource: error_details_pb2.ResourceInfo | None) -> tuple[str, str]:
    return (resource.resource_type, resource.resource_name) if resource else ("resource", "")


def _code_of(number: int) -> grpc.StatusCode:
    return next((code for code in grpc.StatusCode if code.value[0] == number), grpc.StatusCode.UNKNOWN)


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    # The order of a map is not fixed otherwise, and a replayed error must be the error that was sent.
    packed.Pack(message, deterministic=True)
    return packed


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(max(0, round(seconds * 1e9)))
    return duration


def _text(text: str, limit: int = _MAX_TEXT_CHARS) -> str:
    """Text that protobuf and HTTP/2 take: bounded, no lone surrogates, no NUL."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return text.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")
