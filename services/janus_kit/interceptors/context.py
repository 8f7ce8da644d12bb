"""What the code of a call may know about the call: its id and its time.

Set by the interceptors, read anywhere below them, also in tasks that the call
starts (context variables are inherited).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_request_id: ContextVar[str] = ContextVar("janus_request_id", default="")
_deadline: ContextVar[float | None] = ContextVar("janus_deadline", default=None)


def current_request_id() -> str:
    """The id of the call at hand, as in logs and `x-request-id`; empty outside a call."""
    return _request_id.get()


def remaining_seconds() -> float | None:
    """Seconds until the call must be done, never negative; None when nothing limits it."""
    deadline = _deadline.get()
    return None if deadline is None else max(0.0, deadline - time.monotonic())


@contextmanager
def request_scope(request_id: str) -> Iterator[None]:
    """Everything within belongs to this request id."""
    token = _request_id.set(request_id)
    try:
        yield
    finally:
        _request_id.reset(token)


@contextmanager
def deadline_scope(seconds: float | None) -> Iterator[None]:
    """Everything within must end in so many seconds; None lifts an outer deadline.

    This tells code and downstream calls; it interrupts nothing. Work that
    outlives its call on purpose (a durable run) lifts the deadline.
    """
    token = _deadline.set(None if seconds is None else time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)
