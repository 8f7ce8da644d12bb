"""The servers' log files: bounded, and quoted in errors."""

import os
import shutil
from pathlib import Path

LIMIT_BYTES = 8 * 1024 * 1024


def bound(path: Path, limit: int = LIMIT_BYTES) -> None:
    """Keep a log below ``limit`` bytes (plus one older one): copy it and start it anew.

    The server keeps its descriptor, opened for appending, so nothing has to be
    told to it; lines written between the copy and the cut are lost.
    """
    try:
        if path.stat().st_size < limit:
            return
        shutil.copyfile(path, path.with_suffix(".log.1"))
        os.chmod(path.with_suffix(".log.1"), 0o600)
        os.truncate(path, 0)
    except OSError:
        return  # a log is not worth a failure; the next look tries again


def size(path: Path) -> int:
    """Its length in bytes, 0 when there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def tail(path: Path, since: int = 0, lines: int = 12) -> str:
    """The last lines written after the byte ``since``, indented; empty when none."""
    try:
        with path.open("rb") as file:
            file.seek(max(since, size(path) - 16_384))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    found = [line for line in text.splitlines() if line.strip()]
    return "\n".join(f"    {line}" for line in found[-lines:])
