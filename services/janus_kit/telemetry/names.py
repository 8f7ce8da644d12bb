"""Every name that telemetry exports, in one place.

RPC names follow OpenTelemetry's RPC conventions (release candidate); the GenAI
ones follow `open-telemetry/semantic-conventions-genai`, all of which is in
development, so a change there is a change here and nowhere else. Prometheus
names are the OpenTelemetry ones with underscores and the unit.
"""

# Attributes and their values.
RPC_SYSTEM_NAME = "rpc.system.name"
RPC_METHOD = "rpc.method"
RPC_STATUS_CODE = "rpc.status_code"
ERROR_TYPE = "error.type"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
SERVICE_NAME = "service.name"
SERVICE_VERSION = "service.version"
SYSTEM_GRPC = "grpc"
OTHER = "_OTHER"
REQUEST_ID = "janus.request.id"
TENANT = "janus.tenant"
RUN_ID = "janus.run.id"
GENERATION_ID = "janus.generation.id"
PROVIDER = "janus.provider"
ATTEMPT_NUMBER = "janus.attempt.number"
ATTEMPT_OUTCOME = "janus.attempt.outcome"
CONTENT_CUT = "janus.content.cut"
UPSTREAM_MESSAGE = "janus.upstream.message"

# Attributes of HTTP requests.
HTTP_REQUEST_METHOD = "http.request.method"
HTTP_RESPONSE_STATUS_CODE = "http.response.status_code"
HTTP_ROUTE = "http.route"

# GenAI attributes.
GEN_AI_OPERATION_NAME = "gen_ai.operation.name"
GEN_AI_PROVIDER_NAME = "gen_ai.provider.name"
GEN_AI_REQUEST_MODEL = "gen_ai.request.model"
GEN_AI_REQUEST_STREAM = "gen_ai.request.stream"
GEN_AI_REQUEST_TEMPERATURE = "gen_ai.request.temperature"
GEN_AI_REQUEST_TOP_P = "gen_ai.request.top_p"
GEN_AI_REQUEST_TOP_K = "gen_ai.request.top_k"
GEN_AI_REQUEST_FREQUENCY_PENALTY = "gen_ai.request.frequency_penalty"
GEN_AI_REQUEST_PRESENCE_PENALTY = "gen_ai.request.presence_penalty"
GEN_AI_REQUEST_SEED = "gen_ai.request.seed"
GEN_AI_REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
GEN_AI_REQUEST_STOP_SEQUENCES = "gen_ai.request.stop_sequences"
GEN_AI_OUTPUT_TYPE = "gen_ai.output.type"
GEN_AI_EMBEDDINGS_DIMENSION_COUNT = "gen_ai.embeddings.dimension.count"
GEN_AI_RESPONSE_ID = "gen_ai.response.id"
GEN_AI_RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons"
GEN_AI_RESPONSE_MODEL = "gen_ai.response.model"
GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
GEN_AI_TOKEN_TYPE = "gen_ai.token.type"  # noqa: S105 - an attribute's name
GEN_AI_USAGE_INPUT_TOKENS = "gen_ai.usage.input_tokens"
GEN_AI_USAGE_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS = "gen_ai.usage.cache_read.input_tokens"
GEN_AI_USAGE_CACHE_CREATION_INPUT_TOKENS = "gen_ai.usage.cache_creation.input_tokens"
GEN_AI_USAGE_REASONING_OUTPUT_TOKENS = "gen_ai.usage.reasoning.output_tokens"
GEN_AI_INPUT_MESSAGES = "gen_ai.input.messages"
GEN_AI_OUTPUT_MESSAGES = "gen_ai.output.messages"
GEN_AI_SYSTEM_INSTRUCTIONS = "gen_ai.system_instructions"
GEN_AI_CONVERSATION_ID = "gen_ai.conversation.id"
GEN_AI_AGENT_NAME = "gen_ai.agent.name"
GEN_AI_TOOL_NAME = "gen_ai.tool.name"
GEN_AI_TOOL_CALL_ID = "gen_ai.tool.call.id"
GEN_AI_MEMORY_STORE_ID = "gen_ai.memory.store.id"
GEN_AI_MEMORY_RECORD_ID = "gen_ai.memory.record.id"
GEN_AI_MEMORY_RECORD_COUNT = "gen_ai.memory.record.count"

# Prometheus metrics of the plumbing.
RPC_SERVER_CALL_DURATION = "rpc_server_call_duration_seconds"
RPC_CLIENT_CALL_DURATION = "rpc_client_call_duration_seconds"
RPC_IN_FLIGHT = "janus_rpc_in_flight"
ADMISSION_REJECTED = "janus_admission_rejected_total"
AUTH_FAILURES = "janus_auth_failures_total"
DB_POOL_CONNECTIONS = "janus_db_pool_connections"
DB_POOL_WAIT = "janus_db_pool_wait_seconds"
EVENT_LOOP_LAG = "janus_event_loop_lag_seconds"
PART_AVAILABLE = "janus_part_available"
BACKGROUND_RESTARTS = "janus_background_restarts_total"
IDEMPOTENCY_HITS = "janus_idempotency_hits_total"
BUILD_INFO = "janus_build_info"
CONFIG_RELOADS = "janus_config_reloads_total"
CONFIG_LAST_RELOAD_SUCCESSFUL = "janus_config_last_reload_successful"

# Prometheus metrics of model calls, by the GenAI conventions.
GEN_AI_CLIENT_OPERATION_DURATION = "gen_ai_client_operation_duration_seconds"
GEN_AI_CLIENT_TIME_TO_FIRST_CHUNK = "gen_ai_client_operation_time_to_first_chunk_seconds"
GEN_AI_CLIENT_TIME_PER_OUTPUT_CHUNK = "gen_ai_client_operation_time_per_output_chunk_seconds"
GEN_AI_CLIENT_TOKEN_USAGE = "gen_ai_client_token_usage"  # noqa: S105 - a metric's name
GEN_AI_CLIENT_INPUT_TOKENS = "gen_ai_client_inference_usage_input_tokens_total"
GEN_AI_CLIENT_OUTPUT_TOKENS = "gen_ai_client_inference_usage_output_tokens_total"
GEN_AI_CLIENT_CACHE_READ_TOKENS = "gen_ai_client_inference_usage_cache_read_input_tokens_total"
GEN_AI_CLIENT_CACHE_WRITE_TOKENS = "gen_ai_client_inference_usage_cache_write_input_tokens_total"
GEN_AI_CLIENT_OPERATION_INPUT_TOKENS = "gen_ai_client_inference_operation_input_tokens"
GEN_AI_CLIENT_OPERATION_OUTPUT_TOKENS = "gen_ai_client_inference_operation_output_tokens"
GEN_AI_CLIENT_REASONING_TOKENS = "gen_ai_client_inference_usage_reasoning_output_tokens_total"
GEN_AI_EXECUTE_TOOL_DURATION = "gen_ai_execute_tool_duration_seconds"
GEN_AI_SERVER_REQUEST_DURATION = "gen_ai_server_request_duration_seconds"
GEN_AI_SERVER_TIME_TO_FIRST_TOKEN = "gen_ai_server_time_to_first_token_seconds"  # noqa: S105 - a metric's name
GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN = "gen_ai_server_time_per_output_token_seconds"  # noqa: S105 - a metric's name

# Prometheus metrics of inference itself.
INFERENCE_OVERHEAD = "janus_inference_overhead_seconds"
INFERENCE_ATTEMPTS = "janus_inference_attempts_total"
INFERENCE_RETRIES = "janus_inference_retries_total"
INFERENCE_FALLBACKS = "janus_inference_fallbacks_total"
INFERENCE_HEDGES = "janus_inference_hedges_total"
INFERENCE_RETRY_BUDGET = "janus_inference_retry_budget_ratio"
INFERENCE_BREAKER_STATE = "janus_inference_breaker_state"
INFERENCE_STREAMS_IN_FLIGHT = "janus_inference_streams_in_flight"
INFERENCE_STREAMS_TRUNCATED = "janus_inference_streams_truncated_total"
INFERENCE_UPSTREAM_CANCEL = "janus_inference_upstream_cancel_seconds"
INFERENCE_UNKNOWN_EVENTS = "janus_inference_unknown_events_total"
INFERENCE_COST = "janus_inference_cost_microusd_total"
INFERENCE_USAGE_UNWRITTEN = "janus_inference_usage_unwritten"
INFERENCE_USAGE_DROPPED = "janus_inference_usage_dropped_total"
INFERENCE_CACHE = "janus_inference_cache_total"
INFERENCE_RESUMES = "janus_inference_resumes_total"
INFERENCE_BROKEN_OFF = "janus_inference_broken_off_total"
INFERENCE_LIMITS_UNCHECKED = "janus_inference_limits_unchecked_total"
INFERENCE_LIMITS_UNSETTLED = "janus_inference_limits_unsettled_total"

# Prometheus metrics of the HTTP edge.
EDGE_REQUESTS = "janus_edge_requests_total"
EDGE_REQUEST_DURATION = "janus_edge_request_duration_seconds"
EDGE_TIME_TO_FIRST_BYTE = "janus_edge_time_to_first_byte_seconds"
EDGE_REQUESTS_IN_FLIGHT = "janus_edge_requests_in_flight"
EDGE_CLIENT_DISCONNECTS = "janus_edge_client_disconnects_total"

# Buckets, in seconds. Streams are long, so calls go up to five minutes.
CALL_BUCKETS = (
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60, 120, 300,
)  # fmt: skip
GEN_AI_BUCKETS = tuple(0.01 * 2**power for power in range(14))
SHORT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
