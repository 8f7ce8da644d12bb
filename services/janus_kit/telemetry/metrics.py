"""Prometheus metrics of the plumbing. Labels are bounded: no tenant, id or free text."""

import threading
from functools import lru_cache
from typing import Protocol

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from janus_kit.telemetry import names

# A second series for every series, which nobody reads.
disable_created_metrics()  # type: ignore[no-untyped-call]

server_call_duration = Histogram(
    names.RPC_SERVER_CALL_DURATION,
    "Time from a call's arrival to its status.",
    ["rpc_method", "rpc_status_code"],
    buckets=names.CALL_BUCKETS,
)
client_call_duration = Histogram(
    names.RPC_CLIENT_CALL_DURATION,
    "Time from a call's start to its status, as its caller sees it.",
    ["rpc_method", "rpc_status_code"],
    buckets=names.CALL_BUCKETS,
)
rpc_in_flight = Gauge(names.RPC_IN_FLIGHT, "Calls being worked on.", ["rpc_method"])
admission_rejected = Counter(names.ADMISSION_REJECTED, "Calls refused before work began.", ["service", "reason"])
auth_failures = Counter(names.AUTH_FAILURES, "Calls refused for who is calling.", ["reason"])
db_pool_wait = Histogram(
    names.DB_POOL_WAIT,
    "Time that a transaction waited for a free connection.",
    ["pool"],
    buckets=names.SHORT_BUCKETS,
)
event_loop_lag = Histogram(
    names.EVENT_LOOP_LAG,
    "How much later than asked the event loop woke a sleeper.",
    ["service"],
    buckets=names.SHORT_BUCKETS,
)
part_available = Gauge(names.PART_AVAILABLE, "Whether the last check of a dependency succeeded.", ["service", "part"])
background_restarts = Counter(
    names.BACKGROUND_RESTARTS, "Background tasks that failed and were started again.", ["task"]
)
idempotency_hits = Counter(
    names.IDEMPOTENCY_HITS, "Requests whose id was known: replayed, conflict or in_progress.", ["outcome"]
)
build_info = Gauge(names.BUILD_INFO, "What runs here; always 1.", ["version", "revision"])
config_reloads = Counter(names.CONFIG_RELOADS, "Times that the settings were read again while running.", ["outcome"])
config_last_reload_successful = Gauge(
    names.CONFIG_LAST_RELOAD_SUCCESSFUL, "Whether the settings that were read last are valid; 0: older ones are used."
)

# Series that every call needs: to find one by its labels takes a lock and a copy of them.
in_flight = lru_cache(maxsize=1024)(rpc_in_flight.labels)
served = lru_cache(maxsize=4096)(server_call_duration.labels)
called = lru_cache(maxsize=4096)(client_call_duration.labels)


class _Pool(Protocol):
    """Connections to a database."""

    @property
    def size(self) -> int:
        """Those that are open."""
        ...

    @property
    def idle(self) -> int: ...
    @property
    def limit(self) -> int: ...


class _PoolCollector(Collector):
    """Reads the pools when scraped, so that nothing is counted on the hot path."""

    def __init__(self) -> None:
        self._pools: set[_Pool] = set()
        self._lock = threading.Lock()

    def add(self, pool: _Pool) -> None:
        with self._lock:
            self._pools.add(pool)

    def discard(self, pool: _Pool) -> None:
        with self._lock:
            self._pools.discard(pool)

    def collect(self) -> list[GaugeMetricFamily]:
        family = GaugeMetricFamily(names.DB_POOL_CONNECTIONS, "Connections of all pools.", labels=["state"])
        with self._lock:
            pools = list(self._pools)
        idle = sum(pool.idle for pool in pools)
        family.add_metric(["idle"], idle)
        family.add_metric(["in_use"], sum(pool.size for pool in pools) - idle)
        family.add_metric(["limit"], sum(pool.limit for pool in pools))
        return [family]


_pools = _PoolCollector()
REGISTRY.register(_pools)


def watch_db_pool(pool: _Pool) -> None:
    """Count the pool's connections in ``janus_db_pool_connections``."""
    _pools.add(pool)


def unwatch_db_pool(pool: _Pool) -> None:
    """Stop counting a pool that is closed."""
    _pools.discard(pool)
