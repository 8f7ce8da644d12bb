"""Libraries that are imported late: off the event loop, one at a time, whole."""

import asyncio
import sys
from pathlib import Path

import pytest

from janus_kit.libraries import imported, library

_SLOW = """
import time
from {log} import events
events.append("begin")
time.sleep(0.05)
events.append("end")
"""


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two libraries that take their time, and one that can be asked how that went."""
    monkeypatch.syspath_prepend(tmp_path)
    names = [f"janus_test_{name}" for name in ("log", "one", "two")]
    (tmp_path / f"{names[0]}.py").write_text("events = []")
    for name in names[1:]:
        (tmp_path / f"{name}.py").write_text(_SLOW.format(log=names[0]))
        # Also what an earlier test left of it.
        monkeypatch.delitem(sys.modules, name, raising=False)
    return names


async def test_no_two_are_imported_at_the_same_time(libraries: list[str]) -> None:
    log, one, two = libraries
    await asyncio.gather(library(one), asyncio.to_thread(imported, two), library(one))
    assert (await library(log)).events == ["begin", "end", "begin", "end"]
    assert (await library(one)).__name__ == one


async def test_what_is_missing_says_so_each_time() -> None:
    for _ in range(2):
        with pytest.raises(ImportError):
            await library("janus_test_missing")
