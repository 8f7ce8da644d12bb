"""The metrics of inference. Labels are bounded: configured providers, listed or priced models, own words."""

from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from janus_inference.telemetry.counted_histogram import CountedHistogram
from janus_kit.telemetry import names

_OVERHEAD_BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
_CANCEL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
# Tokens come faster than answers begin.
_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, *names.GEN_AI_BUCKETS)
_TOKENS = tuple(4.0**power for power in range(14))
_CALL = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")

# Janus's own.
overhead_seconds = Histogram(
    names.INFERENCE_OVERHEAD,
    "Janus's own share of the time to the first event: until its first request leaves, and from the provider's last"
    " word on. Failed attempts and the waits between attempts lie in between.",
    ["dialect"],
    buckets=_OVERHEAD_BUCKETS,
)
attempts_total = Counter(names.INFERENCE_ATTEMPTS, "Calls to providers, by what came of them.", ["provider", "outcome"])
retries_total = Counter(
    names.INFERENCE_RETRIES, "Attempts at a target that had failed before in the same call.", ["provider", "reason"]
)
fallbacks_total = Counter(
    names.INFERENCE_FALLBACKS, "Attempts at another target than the one before.", ["provider", "reason"]
)
hedges_total = Counter(names.INFERENCE_HEDGES, "Attempts beside one that kept its caller waiting.", ["provider"])
streams_in_flight = Gauge(
    names.INFERENCE_STREAMS_IN_FLIGHT, "Answers being waited for or received from providers.", ["provider"]
)
streams_truncated_total = Counter(
    names.INFERENCE_STREAMS_TRUNCATED, "Answers that broke off after they had begun.", ["provider"]
)
upstream_cancel_seconds = Histogram(
    names.INFERENCE_UPSTREAM_CANCEL,
    "From the end of a call without its answer to the provider's connection being closed.",
    ["provider"],
    buckets=_CANCEL_BUCKETS,
)
unknown_events_total = Counter(
    names.INFERENCE_UNKNOWN_EVENTS,
    "Events of providers of kinds that this version does not know, and skips.",
    ["dialect"],
)
cache_total = Counter(names.INFERENCE_CACHE, "Uses of the response cache, by what came of them.", ["outcome"])
resumes_total = Counter(names.INFERENCE_RESUMES, "Streams that were asked to go on, by what came of it.", ["outcome"])
broken_off_total = Counter(
    names.INFERENCE_BROKEN_OFF, "Resumable generations that Janus ended before their answer.", ["cause"]
)
limits_unchecked_total = Counter(
    names.INFERENCE_LIMITS_UNCHECKED, "Calls that went on without their limits, while Redis was away."
)
limits_unsettled_total = Counter(
    names.INFERENCE_LIMITS_UNSETTLED, "Holds whose use was never put right, since Redis was away for too long."
)
cost_microusd_total = Counter(
    names.INFERENCE_COST,
    "Cost of calls to models with a known price, in millionths of a US dollar.",
    ["provider", "model"],
)
usage_unwritten = Gauge(names.INFERENCE_USAGE_UNWRITTEN, "Usage records that wait for Postgres.")
usage_dropped_total = Counter(
    names.INFERENCE_USAGE_DROPPED, "Usage records that were lost: no room, or nothing that a database takes."
)

# By the GenAI conventions: calls to providers.
operation_duration = Histogram(
    names.GEN_AI_CLIENT_OPERATION_DURATION,
    "Time of one attempt, to its closed connection. No error_type: answered, filtered or cancelled.",
    [*_CALL, "error_type"],
    buckets=names.GEN_AI_BUCKETS,
)
time_to_first_chunk = Histogram(
    names.GEN_AI_CLIENT_TIME_TO_FIRST_CHUNK,
    "Time from the beginning of an attempt to the first event of its answer.",
    _CALL,
    buckets=names.GEN_AI_BUCKETS,
)
time_per_output_chunk = CountedHistogram(
    names.GEN_AI_CLIENT_TIME_PER_OUTPUT_CHUNK,
    "Time between two chunks of an answer: a point for each chunk after the first, added when its attempt ends."
    " What arrives together is one chunk.",
    _CALL,
    buckets=names.GEN_AI_BUCKETS,
)
REGISTRY.register(time_per_output_chunk)
token_usage = Histogram(
    names.GEN_AI_CLIENT_TOKEN_USAGE,
    "Tokens of one attempt that used any, as its usage record has them: estimated where the provider told none.",
    [*_CALL, "gen_ai_token_type"],
    buckets=_TOKENS,
)
input_tokens = Histogram(
    names.GEN_AI_CLIENT_OPERATION_INPUT_TOKENS, "Input tokens of one attempt that used any.", _CALL, buckets=_TOKENS
)
output_tokens = Histogram(
    names.GEN_AI_CLIENT_OPERATION_OUTPUT_TOKENS, "Output tokens of one attempt that used any.", _CALL, buckets=_TOKENS
)
_USAGE = [*_CALL, "gen_ai_token_modality"]
input_tokens_total = Counter(names.GEN_AI_CLIENT_INPUT_TOKENS, "Input tokens, cached ones included.", _USAGE)
output_tokens_total = Counter(names.GEN_AI_CLIENT_OUTPUT_TOKENS, "Output tokens, reasoning included.", _USAGE)
cache_read_tokens_total = Counter(
    names.GEN_AI_CLIENT_CACHE_READ_TOKENS, "Input tokens that were read from a provider's cache.", _USAGE
)
cache_write_tokens_total = Counter(
    names.GEN_AI_CLIENT_CACHE_WRITE_TOKENS, "Input tokens that were written to a provider's cache.", _USAGE
)
reasoning_tokens_total = Counter(
    names.GEN_AI_CLIENT_REASONING_TOKENS, "Output tokens that were spent on reasoning.", _USAGE
)

# By the GenAI conventions: calls of Janus's callers.
request_duration = Histogram(
    names.GEN_AI_SERVER_REQUEST_DURATION,
    "Time of a whole call as its caller sees it, retries included. No error_type: answered or cancelled.",
    [*_CALL, "error_type"],
    buckets=names.GEN_AI_BUCKETS,
)
time_to_first_token = Histogram(
    names.GEN_AI_SERVER_TIME_TO_FIRST_TOKEN,
    "Time from the arrival of a streamed call to its first event, retries included.",
    _CALL,
    buckets=names.GEN_AI_BUCKETS,
)
time_per_output_token = Histogram(
    names.GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN,
    "Mean time per output token after the first of a streamed answer: a point an answer.",
    _CALL,
    buckets=_TOKEN_BUCKETS,
)
