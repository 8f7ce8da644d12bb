"""Metrics and spans of inference. No prompt text, no model text; labels are bounded."""

import time
from types import TracebackType
from typing import Self

from prometheus_client import Counter, Gauge, Histogram

from janus_inference.events import Usage
from janus_kit.errors import JanusError
from janus_kit.telemetry import names, tracing

_OVERHEAD_BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
_CANCEL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)

overhead_seconds = Histogram(
    "janus_inference_overhead_seconds",
    "Janus's own share of the time to the first event.",
    ["dialect"],
    buckets=_OVERHEAD_BUCKETS,
)
attempts_total = Counter(
    "janus_inference_attempts_total", "Calls to providers, by what came of them.", ["provider", "outcome"]
)
streams_in_flight = Gauge("janus_inference_streams_in_flight", "Answers being received from providers.", ["provider"])
streams_truncated_total = Counter(
    "janus_inference_streams_truncated_total", "Answers that broke off after they had begun.", ["provider"]
)
upstream_cancel_seconds = Histogram(
    "janus_inference_upstream_cancel_seconds",
    "From the end of a call without its answer to the provider's connection being closed.",
    ["provider"],
    buckets=_CANCEL_BUCKETS,
)
operation_duration = Histogram(
    "gen_ai_client_operation_duration_seconds",
    "Time of a call to a provider.",
    ["gen_ai_operation_name", "gen_ai_provider_name", "error_type"],
    buckets=names.GEN_AI_BUCKETS,
)
time_to_first_chunk = Histogram(
    "gen_ai_client_operation_time_to_first_chunk_seconds",
    "Time to the first event of a call to a provider.",
    ["gen_ai_operation_name", "gen_ai_provider_name"],
    buckets=names.GEN_AI_BUCKETS,
)
token_usage = Histogram(
    "gen_ai_client_token_usage",
    "Tokens of a call.",
    ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_token_type"],
    buckets=tuple(4.0**power for power in range(14)),
)


class Attempt:
    """One call to a provider, watched from its beginning to the closed connection.

    A context manager. The outcome is `cancelled` until another is said.
    """

    def __init__(self, operation: str, provider: str, model: str, *, streaming: bool = False) -> None:
        self._operation, self._provider, self._model = operation, provider, model
        self._streaming = streaming
        self._outcome = "cancelled"
        self._cancelled_at: float | None = None

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        streams_in_flight.labels(self._provider).inc()
        self._span = tracing.start_span(
            f"{self._operation} {self._model}",
            {
                names.GEN_AI_OPERATION_NAME: self._operation,
                names.GEN_AI_PROVIDER_NAME: self._provider,
                names.GEN_AI_REQUEST_MODEL: self._model,
                names.GEN_AI_REQUEST_STREAM: self._streaming,
            },
        )
        return self

    def first_event(self, seconds: float, overhead: float, dialect: str) -> None:
        """The provider spoke, so long after the request; ``overhead`` of that was Janus's."""
        overhead_seconds.labels(dialect).observe(overhead)
        time_to_first_chunk.labels(self._operation, self._provider).observe(seconds)
        if self._span is not None:
            self._span.set_attribute(names.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, seconds)

    def succeeded(self, usage: Usage) -> None:
        """The answer is whole."""
        self._outcome = "ok"
        inputs = usage.input_uncached_tokens + usage.cache_read_tokens + usage.cache_write_tokens
        token_usage.labels(self._operation, self._provider, "input").observe(inputs)
        token_usage.labels(self._operation, self._provider, "output").observe(usage.output_tokens)
        if self._span is not None:
            self._span.set_attribute(names.GEN_AI_USAGE_INPUT_TOKENS, inputs)
            self._span.set_attribute(names.GEN_AI_USAGE_OUTPUT_TOKENS, usage.output_tokens)
            self._span.set_attribute(names.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS, usage.cache_read_tokens)
            self._span.set_attribute(names.GEN_AI_USAGE_CACHE_CREATION_INPUT_TOKENS, usage.cache_write_tokens)
            self._span.set_attribute(names.GEN_AI_USAGE_REASONING_OUTPUT_TOKENS, usage.reasoning_tokens)

    def failed(self, outcome: str, *, partial: bool = False) -> None:
        """It failed; ``partial`` when part of an answer was already delivered."""
        self._outcome = outcome
        if partial:
            streams_truncated_total.labels(self._provider).inc()

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
        streams_in_flight.labels(self._provider).dec()
        attempts_total.labels(self._provider, self._outcome).inc()
        error_type = "" if self._outcome in ("ok", "cancelled", "content_filter") else self._outcome
        operation_duration.labels(self._operation, self._provider, error_type).observe(now - self._began)
        if self._cancelled_at is not None:
            upstream_cancel_seconds.labels(self._provider).observe(now - self._cancelled_at)
        if self._span is not None:
            if error_type:
                self._span.set_attribute(names.ERROR_TYPE, error_type)
                tracing.mark_failed(self._span)
            self._span.end()
