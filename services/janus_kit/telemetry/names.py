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

# Attributes of HTTP requests.
HTTP_REQUEST_METHOD = "http.request.method"
HTTP_RESPONSE_STATUS_CODE = "http.response.status_code"
HTTP_ROUTE = "http.route"

# GenAI attributes.
GEN_AI_OPERATION_NAME = "gen_ai.operation.name"
GEN_AI_PROVIDER_NAME = "gen_ai.provider.name"
GEN_AI_REQUEST_MODEL = "gen_ai.request.model"
GEN_AI_REQUEST_STREAM = "gen_ai.request.stream"
GEN_AI_RESPONSE_MODEL = "gen_ai.response.model"
GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
GEN_AI_TOKEN_TYPE = "gen_ai.token.type"  # noqa: S105 - an attribute's name
GEN_AI_USAGE_INPUT_TOKENS = "gen_ai.usage.input_tokens"
GEN_AI_USAGE_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS = "gen_ai.usage.cache_read.input_tokens"
GEN_AI_USAGE_CACHE_CREATION_INPUT_TOKENS = "gen_ai.usage.cache_creation.input_tokens"
GEN_AI_USAGE_REASONING_OUTPUT_TOKENS = "gen_ai.usage.reasoning.output_tokens"
GEN_AI_CONVERSATION_ID = "gen_ai.conversation.id"
GEN_AI_AGENT_NAME = "gen_ai.agent.name"
GEN_AI_TOOL_NAME = "gen_ai.tool.name"
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
BUILD_INFO = "janus_build_info"

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
