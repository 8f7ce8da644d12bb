"""gRPC listeners: addresses and the limits that the transport itself enforces."""

import ipaddress
import os
import socket
from contextlib import suppress
from pathlib import Path

import grpc

from janus_kit.settings import ServerSettings

# sockaddr_un holds 108 bytes, one of them the final NUL.
MAX_UDS_PATH_BYTES = 107

_COMMON = {
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.keepalive_permit_without_calls": 1,
    # Clients that ping more often than this get GOAWAY after two strikes.
    "grpc.http2.min_ping_interval_without_data_ms": 10_000,
    "grpc.http2.max_ping_strikes": 2,
}
_MINUTE_MS = 60_000


class ListenError(Exception):
    """A listener that cannot be opened; the text says why and what to do."""


def tcp_options(settings: ServerSettings) -> list[tuple[str, int]]:
    """Arguments of the listener that other machines reach.

    Connections end after 30 minutes, with 5 more for their streams, so that
    load spreads again after a replica joined; clients reconnect by themselves.
    """
    return _options(
        settings,
        {
            "grpc.max_concurrent_streams": settings.max_streams_per_connection,
            "grpc.max_connection_idle_ms": 15 * _MINUTE_MS,
            "grpc.max_connection_age_ms": 30 * _MINUTE_MS,
            "grpc.max_connection_age_grace_ms": 5 * _MINUTE_MS,
            "grpc.so_reuseport": int(settings.reuse_port),
        },
    )


def uds_options(settings: ServerSettings) -> list[tuple[str, int]]:
    """Arguments of the listener between services of one machine.

    One connection carries all calls of a service and lives as long as it, so
    neither streams per connection nor age are limited here.
    """
    return _options(settings, {"grpc.max_concurrent_streams": 100_000})


def _options(settings: ServerSettings, more: dict[str, int]) -> list[tuple[str, int]]:
    return list(
        {
            **_COMMON,
            "grpc.max_receive_message_length": settings.max_transport_bytes,
            "grpc.max_send_message_length": settings.max_transport_bytes,
            "grpc.max_metadata_size": settings.max_metadata_bytes,
            **more,
        }.items()
    )


def require_address(listen: str) -> str:
    """The host of ``host:port``; raises ListenError for anything else."""
    host, separator, port = listen.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65_535:
        raise ListenError(f"'{listen}' is not an address to listen on; write host:port")
    return host


def bind_tcp(server: grpc.aio.Server, listen: str) -> str:
    """Open ``host:port`` and return the address with the port that was really bound."""
    host = require_address(listen)
    try:
        bound = server.add_insecure_port(listen)
    except RuntimeError:
        raise ListenError(
            f"cannot listen on {listen}: another process has it, or the address is not this machine's"
        ) from None
    return f"{host}:{bound}"


def bind_uds(server: grpc.aio.Server, path: str) -> str:
    """Open a Unix socket that only this user can connect to; returns the gRPC target.

    A socket file that nobody answers on is what a killed process left: it is
    replaced. One that answers belongs to a live process.
    """
    if len(os.fsencode(path)) > MAX_UDS_PATH_BYTES:
        raise ListenError(f"the socket path {path} is longer than the {MAX_UDS_PATH_BYTES} bytes that the system takes")
    if _answers(path):
        raise ListenError(f"cannot listen on {path}: another process has it")
    with suppress(FileNotFoundError):
        Path(path).unlink()
    before = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError:
        raise ListenError(f"cannot listen on {path}: is its folder there and writable?") from None
    finally:
        os.umask(before)
    return f"unix:{path}"


def is_loopback(listen: str) -> bool:
    """Whether only this machine reaches the address ``host:port``."""
    host = listen.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.5)
        try:
            probe.connect(path)
        except OSError:
            return False
        return True
