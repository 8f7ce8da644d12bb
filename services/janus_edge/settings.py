"""Settings of the HTTP edge: section ``edge``, environment ``JANUS_EDGE__…``."""

from typing import Self

from pydantic import Field, field_validator, model_validator

from janus_kit.settings import MiB, Seconds, Settings
from janus_kit.transport import is_loopback


class EdgeSettings(Settings):
    """Where the edge listens, whom it calls, and what it allows."""

    listen: str = "127.0.0.1:8080"
    """host:port; port 0 takes a free one; `[::1]:8080` for IPv6."""
    allow_remote_development: bool = False
    """Listen on an address that is not loopback although no caller is asked who it is."""
    allowed_hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    """Names that the Host header may have, without the port; `*` for any. Keeps web pages of
    other origins from reaching a loopback listener by DNS rebinding."""
    target: str = "127.0.0.1:50051"
    """gRPC target that serves inference: `host:port` or `unix:/path`."""
    also_report: tuple[str, ...] = ()
    """Further gRPC targets whose state /readyz shows. What is away there makes the edge
    degraded, not unready: no route of the edge calls them."""
    max_body_bytes: int = Field(default=4 * MiB, ge=1024, le=256 * MiB)
    """Largest HTTP request body."""
    body_timeout_s: Seconds = 30.0
    """How long a request body may take to arrive."""
    request_timeout_s: Seconds = 600.0
    """Longest request; a caller may ask for less with the header `janus-timeout` (seconds)."""
    ready_timeout_s: Seconds = 2.0
    """How long /readyz waits for each target."""
    drain_s: float = Field(default=20.0, ge=0, le=3600)
    """How long requests may finish after SIGTERM."""
    workers: int = Field(default=1, ge=1, le=256)
    """Worker processes of `python -m janus_edge`."""

    @field_validator("listen")
    @classmethod
    def _listen_is_an_address(cls, listen: str) -> str:
        host, _, port = listen.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65_535:
            raise ValueError("must be host:port, with a port from 0 to 65535")
        return listen

    @model_validator(mode="after")
    def _remote_needs_consent(self) -> Self:
        if not self.allow_remote_development and not is_loopback(self.listen):
            raise ValueError(
                f"listen address {self.listen} is not loopback, and callers are not asked who they are: "
                "listen on 127.0.0.1, or set allow_remote_development where the network itself is trusted"
            )
        return self

    @property
    def host(self) -> str:
        """The host of ``listen``, without the brackets of IPv6."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port of ``listen``."""
        return int(self.listen.rpartition(":")[2])
