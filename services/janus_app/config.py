"""`janus config show`: the merged settings and where each value comes from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from janus_kit.settings import Loaded


def show(console: Console, loaded: Loaded) -> None:
    """One row a value; secrets are asterisks."""
    table = Table("setting", "value", "from", box=None, header_style="bold", pad_edge=False)
    for path, value in _rows((), loaded.masked()):
        origin = loaded.origin(path)
        table.add_row(path, _text(value), origin, style="dim" if origin == "default" else "")
    console.print(table)


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
