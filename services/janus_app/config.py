"""`janus config show`: the merged settings and where each value comes from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console

from janus_app.terminal import Column, plain, print_table
from janus_kit.settings import Loaded


def show(console: Console, loaded: Loaded) -> None:
    """One row a value; secrets are asterisks."""
    rows = []
    for path, value in _rows((), loaded.masked()):
        origin = loaded.origin(path)
        cells = (plain(path), plain(_text(value)), plain(origin))
        if origin == "default":
            for cell in cells:
                cell.stylize("dim")
        rows.append(cells)
    print_table(console, (Column("setting"), Column("value", folds=True), Column("from", folds=True)), rows)


def _rows(path: tuple[str, ...], value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _rows((*path, str(key)), below)
    else:
        yield ".".join(path), value


def _text(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
