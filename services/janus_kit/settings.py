"""Settings: one frozen model a section, and what every process has in common.

``janus_kit.configuration.load`` fills them from a YAML file, a secrets
directory, the environment and arguments.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from janus_kit.configuration import Loaded, SettingsError, load

__all__ = [
    "Loaded",
    "PostgresSettings",
    "RedisSettings",
    "ServerSettings",
    "Settings",
    "SettingsError",
    "TelemetrySettings",
    "load",
]

MiB = 1024 * 1024
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Settings(BaseModel):
    """Base of every section: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        # A rejected value may be a secret; errors name the key and the rule only.
        hide_input_in_errors=True,
    )


class PostgresSettings(Settings):
    """Where the records are."""

    url: SecretStr = SecretStr("postgresql://postgres@127.0.0.1:5432/postgres")
    """The user must be a member of the roles janus_app and janus_worker."""
    migrate: bool = True
    """Bring the schema up to date at start. Off where this user may not, and
    `python -m janus_kit.migrations` does it beforehand."""
    pool_min: int = Field(default=1, ge=0, le=100)
    """Connections opened ahead of need."""
    pool_max: int = Field(default=10, ge=1, le=500)
    pool_wait_s: Seconds = 1.0
    """How long a call waits for a connection before RESOURCE_EXHAUSTED."""
    connect_timeout_s: Seconds = 2.0
    statement_timeout_s: Seconds = 10.0

    @field_validator("url")
    @classmethod
    def _url_is_postgres(cls, url: SecretStr) -> SecretStr:
        return _with_scheme(url, "postgresql://", "postgres://")


class RedisSettings(Settings):
    """Where what may be lost or rebuilt is."""

    url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    pool_max: int = Field(default=200, ge=1, le=10_000)
    pool_wait_s: Seconds = 1.0
    connect_timeout_s: Seconds = 1.0
    socket_timeout_s: Seconds = 5.0
    """Longest wait for an answer; commands that block must ask for less."""

    @field_validator("url")
    @classmethod
    def _url_is_redis(cls, url: SecretStr) -> SecretStr:
        return _with_scheme(url, "redis://", "rediss://", "unix://")


class ServerSettings(Settings):
    """The gRPC listeners and what they allow."""

    listen: str = "127.0.0.1:50051"
    """host:port of the TCP listener; port 0 takes a free one; empty for none."""
    uds: str | None = None
    """Path of a Unix socket for calls between services of one machine."""
    identity: Literal["development"] = "development"
    """How callers are identified. `development`: no credential is asked for."""
    allow_remote_development: bool = False
    """Let the development identity be used on an address that is not loopback."""
    drain_s: float = Field(default=20.0, ge=0, le=3600)
    """How long calls may finish after SIGTERM."""
    lame_duck_s: float = Field(default=0.5, ge=0, le=60)
    """How much of that new calls are refused with UNAVAILABLE before connections are closed."""
    max_message_bytes: int = Field(default=4 * MiB, ge=1024, le=256 * MiB)
    """Largest request message, encoded."""
    max_transport_bytes: int = Field(default=16 * MiB, ge=1024, le=512 * MiB)
    """What gRPC itself takes in and sends; beyond it the refusal is untyped."""
    max_deadline_s: Seconds = 300.0
    """Longest unary call, also when the caller asks for more or for nothing."""
    max_stream_deadline_s: Seconds = 3600.0
    """Longest streaming call, likewise."""
    max_streams_per_connection: int = Field(default=250, ge=1, le=100_000)
    max_calls_per_identity: int = Field(default=1000, ge=1)
    """Unary calls of one identity at the same time, on this process."""
    max_streams_per_identity: int = Field(default=2000, ge=1)
    """Streaming calls of one identity at the same time, on this process."""
    max_metadata_bytes: int = Field(default=16 * 1024, ge=1024, le=256 * 1024)
    reflection: bool | None = None
    """Unset: on with the development identity, else off."""
    channelz: bool | None = None
    """Unset: on with the development identity, else off."""
    reuse_port: bool = False
    """Let several processes listen on the same port."""
    health_interval_s: Seconds = 2.0
    """Time between checks of the parts; at most 5 s is promised by StatusService."""


class TelemetrySettings(Settings):
    """What the process tells about itself."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    otlp_endpoint: str | None = None
    """gRPC address of an OpenTelemetry collector, e.g. `http://otel:4317`; unset: no traces."""
    trace_ratio: float = Field(default=1.0, ge=0, le=1)
    """Share of traces that begin here and are recorded; a caller's decision is kept."""
    metrics_listen: str | None = None
    """host:port of an HTTP listener with /metrics, /livez and /readyz; unset: none."""


def _with_scheme(url: SecretStr, *schemes: str) -> SecretStr:
    if not url.get_secret_value().startswith(schemes):
        raise ValueError(f"must begin with {' or '.join(schemes)}")
    return url
