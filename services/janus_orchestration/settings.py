"""Settings of the orchestration service."""

from ipaddress import IPv4Network, IPv6Network
from typing import Annotated

from pydantic import Field

from janus_kit.settings import Settings
from janus_orchestration.mcp_settings import McpServerSettings, ServerName

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class OrchestrationSettings(Settings):
    """How runs are worked on and how long their streams are kept."""

    inference_target: str = "127.0.0.1:50051"
    """gRPC target of the inference service: host:port or unix:/path."""
    memory_target: str = "127.0.0.1:50051"
    """gRPC target of the memory service."""

    max_runs: int = Field(default=512, ge=1, le=100_000)
    """Runs that this process works on at the same time; more wait or go to other replicas."""
    max_queued_per_thread: int = Field(default=64, ge=1, le=10_000)
    """Runs of one thread that may wait for their turn."""
    lease_s: float = Field(default=3.0, ge=0.5, le=300)
    """A run whose owner was not heard of for this long is taken over."""
    poll_s: float = Field(default=0.5, ge=0.05, le=60)
    """Time between looks for runs to take over, and half a heartbeat."""
    max_takeovers: int = Field(default=10, ge=1, le=1_000)
    """A run whose owners died more often than this is failed: it may be what kills them."""

    max_wall_time_s: Seconds = 600.0
    """Longest time of work of one run; an agent's budget can only shorten it."""
    recall_timeout_s: Seconds = 3.0
    """A recall that takes longer is done without."""
    store_timeout_s: Seconds = 3.0
    """How long the end of a run waits for memory to take its turns; then the outbox does it."""
    inference_wait_s: float = Field(default=15.0, ge=0, le=300)
    """How long a model call is tried again while the inference service is away: longer than it takes to restart."""
    max_agents: int = Field(default=8, ge=1, le=64)
    """Agents that may be at work above one another: those that handed over or asked, and the last one."""

    worker_lease_s: float = Field(default=15.0, ge=0.5, le=300)
    """A tool worker that was not heard of for this long is taken for dead; it sends three heartbeats meanwhile."""
    worker_stream_s: Seconds = 1_500.0
    """A worker is asked to connect anew after this long, before its connection is closed for its age."""

    tool_retention_s: float = Field(default=2_592_000.0, ge=3_600, le=31_536_000)
    """A tool that no worker has offered for this long, and that no agent lists, is not known any more."""

    mcp_servers: dict[ServerName, McpServerSettings] = Field(default_factory=dict, max_length=64)
    """MCP servers whose tools agents may use, by the name that stands before the tool's: `<server>.<tool>`."""

    stream_ttl_s: Seconds = 3_600.0
    """Token deltas are replayed for this long after a run's last event."""
    stream_timeout_s: Seconds = 0.5
    """Longest wait for Redis to take events; then the run goes on without it."""
    stream_retry_s: Seconds = 1.0
    """Time between tries while Redis is away."""
    watcher_buffer: int = Field(default=256, ge=8, le=100_000)
    """Events held for a watcher that reads slowly; beyond it, it reads the replay."""

    schedule_poll_s: float = Field(default=1.0, ge=0.05, le=60)
    """Time between looks for schedules that are due."""
    schedule_grace_s: float = Field(default=60.0, ge=1, le=3_600)
    """A run of a schedule that could not be started for this long was missed; see CatchUp."""

    webhook_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    """Networks besides the internet that webhooks may reach, e.g. `10.0.0.0/8`, by http as well."""
    max_webhooks_per_tenant: int = Field(default=16, ge=1, le=1_000)
    webhook_poll_s: float = Field(default=5.0, ge=0.05, le=60)
    """Time between looks for deliveries whose turn has come; new ones are sent at once."""
    webhook_timeout_s: float = Field(default=10.0, gt=0, le=120)
    """Longest time for one try, from the look-up of the name to the status."""
    webhooks_at_once: int = Field(default=128, ge=1, le=10_000)
    """Requests under way at the same time, from this process."""
    webhook_concurrency: int = Field(default=4, ge=1, le=1_000)
    """Those to one webhook."""
    webhook_attempts: int = Field(default=12, ge=1, le=100)
    """Tries after which a delivery is a dead letter."""
    webhook_first_retry_s: Seconds = 5.0
    """Wait after the first try; four times as long after each further one."""
    webhook_longest_retry_s: Seconds = 21_600.0
    """Longest of these waits."""
