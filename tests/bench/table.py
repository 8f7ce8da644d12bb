"""The table that a benchmark prints: each figure beside the baseline of the same run."""

from collections.abc import Sequence

WHAT = 52


def header(baseline: str) -> None:
    print(f"{'':{WHAT}}{'measured':>14}{baseline:>14}{'ratio/added':>14}  aim", flush=True)


def row(what: str, measured: str, baseline: str = "", ratio: str = "", aim: str = "") -> None:
    print(f"{what:{WHAT}}{measured:>14}{baseline:>14}{ratio:>14}  {aim}", flush=True)


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def us(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} µs"


def at(values: Sequence[float], quantile: float) -> float:
    """The value that this share of all values stays below; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))] if ordered else 0.0
