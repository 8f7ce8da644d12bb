"""One call to a provider as telemetry sees it: its metrics and its span."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from janus_inference.events import FinishReason, Usage
from janus_inference.telemetry import metrics
from janus_inference.telemetry.naming import PLAIN, Naming
from janus_kit.errors import JanusError
from janus_kit.telemetry import names, tracing
from janus_kit.telemetry.tracing import Attributes

if TYPE_CHECKING:
    from opentelemetry.trace import Span

# Which modality a token has is not told by most providers.
_MODALITY = "unknown"


class Attempt:
    """One call to a provider, watched from its beginning to the closed connection.

    A context manager. The outcome is `cancelled` until another is said.
    ``describe`` gives further attributes; it is called only for a span that is
    recorded.
    """

    def __init__(
        self,
        operation: str,
        provider: str,
        model: str,
        *,
        naming: Naming = PLAIN,
        describe: Callable[[], Attributes] | None = None,
    ) -> None:
        self._operation, self._provider, self._model = operation, provider, model
        self._naming = naming
        self._describe = describe
        self._labels = naming.labels(operation, provider, model)
        self._outcome = "cancelled"
        self._cancelled_at: float | None = None
        self._heard = 0.0
        self._chunks = metrics.time_per_output_chunk.counts()
        self._span: Span | None = None

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        if self._operation == "chat":
            metrics.streams_in_flight.labels(self._provider).inc()
        if tracing.enabled():
            self._span = self._started()
        return self

    @property
    def is_recorded(self) -> bool:
        """Whether there is a span that somebody will see."""
        return self._span is not None and self._span.is_recording()

    def first_event(self, seconds: float, overhead: float, dialect: str, heard: float) -> None:
        """The provider spoke, so long after the request; ``overhead`` of that was Janus's.

        ``heard`` is when, by ``time.perf_counter``.
        """
        self._heard = heard
        metrics.overhead_seconds.labels(dialect).observe(overhead)
        metrics.time_to_first_chunk.labels(*self._labels).observe(seconds)
        if self._span is not None:
            self._span.set_attribute(names.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, seconds)

    def chunk(self, heard: float) -> None:
        """The next chunk, heard then. Called for every one, so it only counts."""
        self._chunks.add(heard - self._heard)
        self._heard = heard

    def succeeded(self) -> None:
        """The answer is whole."""
        self._outcome = "ok"

    def answered(self, reason: FinishReason, response_id: str, model: str) -> None:
        """What the provider said of its whole answer; what is empty was not said."""
        if self._span is not None:
            self._span.set_attribute(names.GEN_AI_RESPONSE_FINISH_REASONS, (reason.value,))
            if response_id:
                self._span.set_attribute(names.GEN_AI_RESPONSE_ID, response_id)
            if model:
                self._span.set_attribute(names.GEN_AI_RESPONSE_MODEL, model)

    def tell(self, attributes: Attributes) -> None:
        """Further attributes of the span."""
        if self._span is not None:
            self._span.set_attributes(attributes)

    def used(self, usage: Usage) -> None:
        """Tokens of this attempt, whatever came of it."""
        if usage.input_tokens or usage.output_tokens:
            metrics.token_usage.labels(*self._labels, "input").observe(usage.input_tokens)
            metrics.token_usage.labels(*self._labels, "output").observe(usage.output_tokens)
            if self._naming.usage_counters:
                self._count(usage)
        if self._span is not None:
            self._span.set_attributes(
                {
                    names.GEN_AI_USAGE_INPUT_TOKENS: usage.input_tokens,
                    names.GEN_AI_USAGE_OUTPUT_TOKENS: usage.output_tokens,
                    names.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: usage.cache_read_tokens,
                    names.GEN_AI_USAGE_CACHE_CREATION_INPUT_TOKENS: usage.cache_write_tokens,
                    names.GEN_AI_USAGE_REASONING_OUTPUT_TOKENS: usage.reasoning_tokens,
                }
            )

    def failed(self, outcome: str, *, partial: bool = False) -> None:
        """It failed; ``partial`` when part of an answer was already delivered."""
        self._outcome = outcome
        if partial:
            metrics.streams_truncated_total.labels(self._provider).inc()
        if outcome == "content_filter" and self._span is not None:
            self._span.set_attribute(names.GEN_AI_RESPONSE_FINISH_REASONS, (FinishReason.CONTENT_FILTER.value,))

    def cancelling(self) -> None:
        """The caller is gone; from now on every moment costs tokens."""
        if self._outcome == "cancelled":
            self._cancelled_at = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        now = time.perf_counter()
        if kind is not None and self._outcome == "cancelled" and self._cancelled_at is None:
            # What the dialect cannot say was refused before anything was sent.
            self._outcome = "refused" if isinstance(error, JanusError) else "error"
        if self._operation == "chat":
            metrics.streams_in_flight.labels(self._provider).dec()
        metrics.attempts_total.labels(self._provider, self._outcome).inc()
        error_type = "" if self._outcome in ("ok", "cancelled", "content_filter") else self._outcome
        metrics.operation_duration.labels(*self._labels, error_type).observe(now - self._began)
        if self._operation == "chat":
            metrics.time_per_output_chunk.add(self._labels, self._chunks)
        if self._cancelled_at is not None:
            metrics.upstream_cancel_seconds.labels(self._provider).observe(now - self._cancelled_at)
        if self._span is not None:
            self._span.set_attribute(names.ATTEMPT_OUTCOME, self._outcome)
            if error_type:
                self._span.set_attribute(names.ERROR_TYPE, error_type)
                tracing.mark_failed(self._span)
            self._span.end()

    def _started(self) -> "Span | None":
        peer = self._naming.peer(self._provider)
        attributes: dict[str, tracing.AttributeValue] = {
            names.GEN_AI_OPERATION_NAME: self._operation,
            names.GEN_AI_PROVIDER_NAME: peer.name,
            names.GEN_AI_REQUEST_MODEL: self._model,
            names.PROVIDER: self._provider,
        }
        if self._operation == "chat":
            # Providers are always asked for a stream, whatever Janus was asked for.
            attributes[names.GEN_AI_REQUEST_STREAM] = True
        if peer.address:
            attributes[names.SERVER_ADDRESS] = peer.address
            if peer.port:
                attributes[names.SERVER_PORT] = peer.port
        span = tracing.start_span(f"{self._operation} {self._model}", attributes)
        if span is not None and self._describe is not None and span.is_recording():
            span.set_attributes(self._describe())
        return span

    def _count(self, usage: Usage) -> None:
        labels = (*self._labels, _MODALITY)
        for counter, tokens in (
            (metrics.input_tokens_total, usage.input_tokens),
            (metrics.output_tokens_total, usage.output_tokens),
            (metrics.cache_read_tokens_total, usage.cache_read_tokens),
            (metrics.cache_write_tokens_total, usage.cache_write_tokens),
            (metrics.reasoning_tokens_total, usage.reasoning_tokens),
        ):
            if tokens:
                counter.labels(*labels).inc(tokens)
        metrics.input_tokens.labels(*self._labels).observe(usage.input_tokens)
        metrics.output_tokens.labels(*self._labels).observe(usage.output_tokens)
