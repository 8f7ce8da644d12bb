"""A histogram that takes points already counted by bucket.

A stream has a point a chunk. To observe each as it comes costs more than the
chunk itself; to count it into a list costs next to nothing.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Counts:
    """Points counted by bucket, to be added to the histogram at once."""

    __slots__ = ("_bounds", "by_bucket", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.by_bucket = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """One point."""
        self.by_bucket[bisect_left(self._bounds, value)] += 1
        self.total += value


class CountedHistogram(Collector):
    """``buckets`` are upper bounds, ascending; the last one, infinity, is not among them."""

    def __init__(self, name: str, documentation: str, labels: Iterable[str], *, buckets: Sequence[float]) -> None:
        self._name, self._documentation, self._labels = name, documentation, tuple(labels)
        self._bounds = tuple(buckets)
        self._series: dict[tuple[str, ...], Counts] = {}

    def counts(self) -> Counts:
        """Room for the points of one stream."""
        return Counts(self._bounds)

    def add(self, labels: tuple[str, ...], counts: Counts) -> None:
        """All points of one stream."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = self.counts()
        series.by_bucket = [have + more for have, more in zip(series.by_bucket, counts.by_bucket, strict=True)]
        series.total += counts.total

    def collect(self) -> list[HistogramMetricFamily]:
        """As Prometheus reads it; also called by other threads than the one that adds."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        for labels, series in tuple(self._series.items()):
            buckets, so_far = [], 0
            for bound, count in zip(bounds, series.by_bucket, strict=True):
                so_far += count
                buckets.append((bound, so_far))
            family.add_metric(labels, buckets, series.total)
        return [family]
