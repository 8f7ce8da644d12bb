"""The errors that Janus shows to callers, free of gRPC and HTTP.

Domain code raises these; ``rpc_errors`` is the one place that turns them into
gRPC statuses and HTTP codes::

    JanusError
    ├── InvalidArgument      a field breaks a documented rule
    ├── FailedPrecondition   the state of a resource forbids the call
    ├── Aborted              a race was lost; may be tried again
    ├── AlreadyExists        the id is taken, or a request id was reused
    ├── Unauthenticated      no credential, or not a valid one
    ├── PermissionDenied     known caller, not allowed
    ├── NotFound             absent, or another tenant's
    ├── ResourceExhausted    a rate, quota, queue or pool is full
    ├── Unavailable          a part that the call needs is away
    ├── DeadlineExceeded     time ran out, and what was being waited for
    ├── Cancelled            the caller ended the work
    ├── OutOfRange           a cursor beyond what the stream ever had
    ├── Unimplemented        in the contract, not in this version
    ├── DataLoss             a checksum does not match
    └── Internal             our bug; carries only an incident id

``reason`` is the name of a ``janus.common.v1.ErrorReason`` without its
``ERROR_REASON_`` prefix. Messages are for people and reach callers: they hold
no exception text, SQL, address or secret.
"""

from collections.abc import Iterable, Mapping
from typing import ClassVar, NamedTuple, Self


class FieldViolation(NamedTuple):
    """One broken rule: the path of the field and the rule in plain words."""

    field: str
    rule: str


class Quota(NamedTuple):
    """Which limit was hit: whose it is, and what it says."""

    subject: str
    description: str


class JanusError(Exception):
    """A refusal or failure that a caller may read.

    ``code`` is the name of the gRPC status code. ``retry_after`` is in
    seconds; None means that the caller is not told to try again.
    """

    code: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        reason: str,
        message: str,
        metadata: Mapping[str, str] | None = None,
        *,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.retry_after = retry_after

    def again(self, retry_after: float | None) -> Self:
        """The same error for another caller, who may try again after so many seconds."""
        copied = type(self).__new__(type(self))
        copied.args = self.args
        copied.__dict__.update(self.__dict__)
        copied.retry_after = retry_after
        return copied

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.reason}: {self.message})"


class InvalidArgument(JanusError):
    """Input that no state of the system would make right.

    ``InvalidArgument("model", "must name a configured model")`` names one
    field; ``InvalidArgument.of([...])`` names several at once.
    """

    code = "INVALID_ARGUMENT"

    def __init__(
        self,
        field: str,
        rule: str,
        *,
        reason: str = "FIELD_INVALID",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(reason, f"{field}: {rule}", metadata)
        self.violations: tuple[FieldViolation, ...] = (FieldViolation(field, rule),)

    @classmethod
    def of(
        cls,
        violations: Iterable[FieldViolation],
        *,
        reason: str = "FIELD_INVALID",
        metadata: Mapping[str, str] | None = None,
    ) -> Self:
        """All violations in one error. Raises ValueError when there are none."""
        found = tuple(FieldViolation(*violation) for violation in violations)
        if not found:
            raise ValueError("an InvalidArgument needs at least one violation")
        error = cls(found[0].field, found[0].rule, reason=reason, metadata=metadata)
        error.violations = found
        error.message = "; ".join(f"{field}: {rule}" for field, rule in found)
        error.args = (error.message,)
        return error


class FailedPrecondition(JanusError):
    """The state of a resource forbids the call. ``subject`` names the resource."""

    code = "FAILED_PRECONDITION"

    def __init__(
        self,
        reason: str,
        message: str,
        metadata: Mapping[str, str] | None = None,
        *,
        subject: str = "",
    ) -> None:
        super().__init__(reason, message, metadata)
        self.subject = subject


class Aborted(JanusError):
    """A race was lost: read again and try again."""

    code = "ABORTED"

    def __init__(
        self,
        reason: str,
        message: str,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(reason, message, metadata, retry_after=retry_after)


class AlreadyExists(JanusError):
    """The id is taken, or a request id came back with another body."""

    code = "ALREADY_EXISTS"

    def __init__(
        self,
        reason: str,
        message: str,
        resource_type: str,
        resource_name: str,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(reason, message, metadata)
        self.resource_type = resource_type
        self.resource_name = resource_name


class Unauthenticated(JanusError):
    """No credential, or one that is not valid. The text stays coarse on purpose."""

    code = "UNAUTHENTICATED"

    def __init__(
        self,
        reason: str = "CREDENTIAL_INVALID",
        message: str = "the call carries no valid credential",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(reason, message, metadata)


class PermissionDenied(JanusError):
    """The identity is known and is not allowed to do this."""

    code = "PERMISSION_DENIED"


class NotFound(JanusError):
    """Absent, or another tenant's: the text is the same for both."""

    code = "NOT_FOUND"

    def __init__(
        self,
        resource_type: str,
        resource_name: str,
        *,
        reason: str = "RESOURCE_NOT_FOUND",
        message: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        text = message or f"{resource_type} '{resource_name}' was not found"
        super().__init__(reason, text, metadata)
        self.resource_type = resource_type
        self.resource_name = resource_name


class ResourceExhausted(JanusError):
    """A rate, quota, queue or pool is full; ``quota`` says which limit."""

    code = "RESOURCE_EXHAUSTED"

    def __init__(
        self,
        reason: str,
        message: str,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        quota: tuple[str, str] | None = None,
    ) -> None:
        super().__init__(reason, message, metadata, retry_after=retry_after)
        self.quota = Quota(*quota) if quota is not None else None


class Unavailable(JanusError):
    """A part that the call cannot do without is away.

    ``part`` is `postgres`, `redis`, `inference`, …; it travels as metadata
    unless ``metadata`` already says what is away.
    """

    code = "UNAVAILABLE"

    def __init__(
        self,
        part: str,
        message: str | None = None,
        *,
        retry_after: float | None = 1.0,
        reason: str = "DEPENDENCY_UNAVAILABLE",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        merged = {"part": part, **(metadata or {})} if part else metadata
        super().__init__(reason, message or f"{part} is not available", merged, retry_after=retry_after)
        self.part = part


def is_late(error: BaseException) -> bool:
    """Whether it is what became of a wait that took too long: the part may be slow, and not away."""
    return isinstance(error, TimeoutError) or isinstance(error.__cause__, TimeoutError)


class DeadlineExceeded(JanusError):
    """Time ran out. ``leg`` is what was being waited for (`call`, `first_event`, …)."""

    code = "DEADLINE_EXCEEDED"

    def __init__(
        self,
        leg: str,
        message: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(
            "DEADLINE_EXCEEDED",
            message or f"the deadline passed while waiting for '{leg}'",
            {"leg": leg, **(metadata or {})},
            retry_after=retry_after,
        )
        self.leg = leg


class Cancelled(JanusError):
    """The caller, or somebody on its behalf, ended the work."""

    code = "CANCELLED"

    def __init__(
        self,
        reason: str = "CANCELLED",
        message: str = "the work was cancelled",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(reason, message, metadata)


class OutOfRange(JanusError):
    """A cursor or sequence beyond what the stream ever had."""

    code = "OUT_OF_RANGE"


class Unimplemented(JanusError):
    """The contract has it; this version of the server does not."""

    code = "UNIMPLEMENTED"

    def __init__(
        self,
        reason: str = "NOT_IMPLEMENTED",
        message: str = "not implemented in this version",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(reason, message, metadata)


class DataLoss(JanusError):
    """Stored or imported data does not match its checksum."""

    code = "DATA_LOSS"


class Internal(JanusError):
    """Our bug. Says nothing but an incident id, which the log has too."""

    code = "INTERNAL"

    def __init__(self, incident_id: str) -> None:
        super().__init__(
            "INTERNAL",
            f"internal error; incident {incident_id}",
            {"incident_id": incident_id},
        )
        self.incident_id = incident_id
