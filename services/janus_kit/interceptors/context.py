"""What the code of a call may know about the call: its id and its time.

Set by the interceptors, read anywhere below them, also in tasks that the call
starts (context variables are inherited).
"""

import time
from contextlib import AbstractContextManager
from contextvars import ContextVar

from janus_kit.scoped import Scoped

_request_id: ContextVar[str] = ContextVar("janus_request_id", default="")
_deadline: ContextVar[float | None] = ContextVar("janus_deadline", default=None)


def current_request_id() -> str:
    """The id of the call at hand, as in logs and `x-request-id`; empty outside a call."""
    return _request_id.get()


def remaining_seconds() -> float | None:
    """Seconds until the call must be done, never negative; None when nothing limits it."""
    deadline = _deadline.get()
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def request_scope(request_id: str) -> AbstractContextManager[None]:
    """Everything within belongs to this request id."""
    return Scoped(_request_id, request_id)


def deadline_scope(seconds: float | None) -> AbstractContextManager[None]:
    """Everything within must end in so many seconds from now; None lifts an outer deadline.

    This tells code and downstream calls; it interrupts nothing. Work that
    outlives its call on purpose (a durable run) lifts the deadline.
    """
    return Scoped(_deadline, None if seconds is None else time.monotonic() + seconds)
