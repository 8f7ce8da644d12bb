"""The table that a benchmark prints: each figure beside the baselines of the same run."""

import argparse
from collections.abc import Collection, Sequence

WHAT = 56


def add_parts(parser: argparse.ArgumentParser, parts: Collection[str], without: Collection[str] = ()) -> None:
    """Add `--only`: the parts to measure, in order; all of them by default, but for those of `without`."""

    def chosen(said: str) -> list[str]:
        names = said.split(",")
        if unknown := [name for name in names if name not in parts]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(parts)}")
        return names

    default = [part for part in parts if part not in without]
    parser.add_argument("--only", type=chosen, default=default, help=f"parts, with commas, of {', '.join(parts)}")


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
