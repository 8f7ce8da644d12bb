"""Free loopback ports that stay ours."""

import random
import socket
from collections.abc import Collection
from pathlib import Path

LOOPBACK = "127.0.0.1"
_LOWEST = 20_000


def is_free(port: int) -> bool:
    """True when a server could listen on this loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers do, so that connections in TIME_WAIT are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError:
            return False
        return True


def choose(preferred: int | None, taken: Collection[int] = ()) -> int:
    """``preferred`` when it is free (clients that know it reconnect), else another.

    The kernel's range for outgoing connections is avoided: while a server is
    being restarted its port could be given to somebody's connection, and a
    client that keeps trying a local port in that range can even connect to
    itself and so hold the port.
    """
    if preferred is not None and preferred not in taken and is_free(preferred):
        return preferred
    highest = _first_outgoing() - 1
    if highest > _LOWEST:
        for _ in range(200):
            port = random.randint(_LOWEST, highest)  # noqa: S311 - not a secret
            if port not in taken and is_free(port):
                return port
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _first_outgoing() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):
        return 32_768
