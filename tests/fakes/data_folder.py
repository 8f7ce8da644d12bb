"""Where the tests' servers keep their data."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "janus-tests-"
_MEMORY, _ROOM = Path("/dev/shm"), 4 * 1024**3


@contextmanager
def data_folder() -> Iterator[Path]:
    """A folder for a stack, which is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_folders()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep() -> None:
    """Remove the folders of pytest processes that were killed."""
    for folder in _folders().glob(f"{_PREFIX}*"):
        try:
            if folder.stat().st_uid != os.geteuid() or time.time() - folder.stat().st_mtime < 60:
                continue
            descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            continue  # in use
        finally:
            os.close(descriptor)


def _folders() -> Path:
    """Where data folders are made: in memory where there is room.

    Servers are killed, the machine is not: what they sync to a disk proves nothing and takes half the time.
    """
    with suppress(OSError):
        if shutil.disk_usage(_MEMORY).free >= _ROOM and os.access(_MEMORY, os.W_OK):
            return _MEMORY
    return Path(tempfile.gettempdir())
