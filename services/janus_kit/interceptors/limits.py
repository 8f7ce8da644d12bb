"""Limits: whether the process takes a call on now."""

from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from janus_kit.errors import ResourceExhausted
from janus_kit.interceptors.call import Call
from janus_kit.telemetry import metrics

_Key = tuple[str, str, bool]


class Admission(Protocol):
    """Decides whether a call may begin. The identity is known by then."""

    def admit(self, call: Call) -> AbstractContextManager[None]:
        """Entered at once and held for as long as the call runs. Raises ResourceExhausted."""
        ...


class ConcurrencyCap:
    """So many calls and streams of one identity at once, counted in this process.

    A connection's own limit does not stop one caller from opening many
    connections; this does.
    """

    def __init__(self, *, calls: int, streams: int) -> None:
        self._calls = calls
        self._streams = streams
        self._running: Counter[_Key] = Counter()

    def admit(self, call: Call) -> AbstractContextManager[None]:
        identity = call.identity
        if identity is None:
            return nullcontext()
        is_stream = call.method.is_stream
        limit = self._streams if is_stream else self._calls
        key = (identity.tenant, identity.subject, is_stream)
        if self._running[key] >= limit:
            kind = "streams" if is_stream else "calls"
            metrics.admission_rejected.labels(call.method.service, f"concurrent_{kind}").inc()
            raise ResourceExhausted(
                "QUOTA_EXCEEDED",
                f"too many {kind} at the same time",
                {"limit": str(limit)},
                retry_after=1.0,
                quota=(f"concurrent {kind} of an identity", f"{limit} at the same time"),
            )
        return _Counted(self._running, key)


class _Counted:
    """One more of an identity's, within."""

    __slots__ = ("_key", "_running")

    def __init__(self, running: Counter[_Key], key: _Key) -> None:
        self._running = running
        self._key = key

    def __enter__(self) -> None:
        self._running[self._key] += 1

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._running[self._key] -= 1
        if not self._running[self._key]:
            # Identities come and go; only those at work are remembered.
            del self._running[self._key]
