"""One call, as its tool sees it."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime

from janus_api.tools.v1 import tool_worker_service_pb2 as pb


class Call:
    """What a tool may know of the call that it works on, and how it says how far it is.

    A tool gets it by a parameter of this type, which the model does not see.
    Everything here may be used from any thread.
    """

    def __init__(self, call: pb.Call, on_progress: Callable[[], None] = lambda: None) -> None:
        self.id: str = call.call_id
        self.tool: str = call.tool
        self.attempt: int = call.attempt
        """Number of this try, from 1."""
        self.idempotency_key: str = call.idempotency_key
        """The same for every try of the call: give it to whatever must not act twice."""
        self.deadline: datetime = call.deadline.ToDatetime(UTC)
        """No result is awaited after that, by the server's clock; an at-most-once tool's is until a person decides."""
        self.run_id: str = call.run_id
        self.thread_id: str = call.thread_id
        self.subject: str = call.subject
        """Whom the thread is about, e.g. a user's id; may be empty."""
        self.traceparent: str = call.traceparent
        """W3C trace context; may be empty."""
        self._cancelled = threading.Event()
        self._on_progress = on_progress
        self._progress: pb.CallProgress | None = None

    @property
    def is_cancelled(self) -> bool:
        """Nobody waits for the result any more. Only a function without `async` needs to look."""
        return self._cancelled.is_set()

    def progress(self, fraction: float | None = None, message: str = "") -> None:
        """Say how far the tool is: a share from 0 to 1, words for people. Of several at once the newest is sent."""
        self._progress = pb.CallProgress(
            call_id=self.id, fraction=None if fraction is None else min(1.0, max(0.0, fraction)), message=message[:1024]
        )
        self._on_progress()

    def cancel(self) -> None:
        """Nobody waits any more."""
        self._cancelled.set()

    def take_progress(self) -> pb.CallProgress | None:
        """What was said last and not sent yet."""
        progress, self._progress = self._progress, None
        return progress
