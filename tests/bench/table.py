"""The table that a benchmark prints: each figure beside the baselines of the same run."""

from collections.abc import Sequence

WHAT = 56


def header(direct: str = "direct", bare: str = "bare chain", ratio: str = "added/ratio") -> None:
    print(f"{'':{WHAT}}{'measured':>12}{direct:>12}{bare:>12}{ratio:>13}  aim", flush=True)


def row(what: str, measured: str, *, direct: str = "", bare: str = "", ratio: str = "", aim: str = "") -> None:
    print(f"{what:{WHAT}}{measured:>12}{direct:>12}{bare:>12}{ratio:>13}  {aim}".rstrip(), flush=True)


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def us(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} µs"


def at(values: Sequence[float], quantile: float) -> float:
    """The value that this share of all values stays below; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))] if ordered else 0.0
