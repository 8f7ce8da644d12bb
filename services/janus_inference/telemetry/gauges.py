"""Breakers and retry budgets as gauges that are read when scraped, so that calls pay nothing for them."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from janus_inference.breakers import Breakers
from janus_inference.retry_budget import RetryBudget
from janus_kit.telemetry import names


@dataclass(frozen=True, eq=False)
class _Source:
    """What one mounted service has; ``providers`` are those that are configured at the moment."""

    providers: Callable[[], Iterable[str]]
    breakers: Breakers
    budget: RetryBudget


class _Gauges(Collector):
    """Scrapes come from another thread than the calls: everything is read from copies."""

    def __init__(self) -> None:
        self._sources: list[_Source] = []
        self._lock = threading.Lock()

    def add(self, source: _Source) -> None:
        with self._lock:
            self._sources.append(source)

    def discard(self, source: _Source) -> None:
        with self._lock:
            self._sources.remove(source)

    def collect(self) -> list[GaugeMetricFamily]:
        with self._lock:
            sources = tuple(self._sources)
        states: dict[str, int] = {}
        used: dict[str, float] = {}
        for source in sources:
            worst = {name: state.value for name, state in source.breakers.worst().items()}
            for provider in source.providers():
                states[provider] = max(states.get(provider, 0), worst.get(provider, 0))
                used[provider] = max(used.get(provider, 0.0), source.budget.used(provider))
        breakers = GaugeMetricFamily(
            names.INFERENCE_BREAKER_STATE,
            "Circuit breaker of a provider, the worst of its models: 0 closed, 1 trying again, 2 open.",
            labels=["provider"],
        )
        budgets = GaugeMetricFamily(
            names.INFERENCE_RETRY_BUDGET,
            "Share of a provider's budget for extra attempts that the last minute used; 1: nothing is left.",
            labels=["provider"],
        )
        for provider in sorted(states):
            breakers.add_metric([provider], states[provider])
            budgets.add_metric([provider], used[provider])
        return [breakers, budgets]


_gauges = _Gauges()
REGISTRY.register(_gauges)


@contextmanager
def shown(providers: Callable[[], Iterable[str]], breakers: Breakers, budget: RetryBudget) -> Iterator[None]:
    """Within the block `/metrics` shows the breakers and budgets of these providers."""
    source = _Source(providers, breakers, budget)
    _gauges.add(source)
    try:
        yield
    finally:
        _gauges.discard(source)
