"""A call as Janus's caller sees it, over all its attempts."""

import time
from types import TracebackType
from typing import Self

from janus_inference.events import Event, Failed, Finished, Numbered, RouteChanged, Started
from janus_inference.telemetry import metrics
from janus_inference.telemetry.naming import Naming
from janus_kit.errors import Cancelled, JanusError
from janus_kit.telemetry import tracing


def told(last: Numbered | None) -> None:
    """The last event that the caller of a stream was sent; a failure is one of the call, whose status is OK."""
    if last is not None and isinstance(last.event, Failed) and not isinstance(last.event.error, Cancelled):
        tracing.call_failed(last.event.error.reason)


class Served:
    """Counts one call when it ends: ``note`` its terminal event, or ``raised``, or leave its block.

    ``began`` is by ``time.perf_counter``. The provider and model are those that
    were asked last.
    """

    def __init__(
        self, operation: str, naming: Naming, provider: str, model: str, began: float, *, streaming: bool = False
    ) -> None:
        self._operation, self._naming = operation, naming
        self._provider, self._model = provider, model
        self._began = began
        self._streaming = streaming
        self._first: float | None = None
        self._is_over = False

    def spoke(self) -> None:
        """The first event of the answer goes to the caller."""
        self._first = time.perf_counter()

    def note(self, event: Event) -> None:
        """An event that says who is asked, or how the call ended."""
        match event:
            case Started():
                self._provider, self._model = event.provider, event.model
            case RouteChanged():
                self._provider, _, self._model = event.to.partition("/")
            case Finished():
                self._ended("", event.usage.output_tokens)
            case Failed():
                self._ended(event.error.reason)

    def raised(self, error: BaseException) -> None:
        """It ended without a terminal event: with an error, or because its caller left."""
        if isinstance(error, JanusError):
            self._ended(error.reason)
        else:
            self._ended("INTERNAL" if isinstance(error, Exception) else "")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.raised(error)
        else:
            self._ended("")

    def _ended(self, error_type: str, output_tokens: int = 0) -> None:
        if self._is_over:
            return
        self._is_over = True
        now = time.perf_counter()
        labels = self._naming.labels(self._operation, self._provider, self._model)
        metrics.request_duration.labels(*labels, error_type).observe(now - self._began)
        if self._streaming and self._first is not None and not error_type:
            metrics.time_to_first_token.labels(*labels).observe(self._first - self._began)
            if output_tokens > 1:
                metrics.time_per_output_token.labels(*labels).observe((now - self._first) / (output_tokens - 1))
