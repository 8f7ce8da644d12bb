"""Libraries that take long to import: on a thread, one at a time, when they are first needed.

One at a time, because two threads that enter one library from different ends
wait for each other, and Python ends that by giving one of them half a module.
"""

import asyncio
import importlib
import os
import threading
from typing import Any

_one_at_a_time = threading.Lock()
_whole: dict[str, Any] = {}


async def library(name: str) -> Any:
    """The library, whole, without holding anybody up. Raises ImportError."""
    return _whole[name] if name in _whole else await asyncio.to_thread(imported, name)


def imported(name: str) -> Any:
    """The same for who is on a thread already."""
    with _one_at_a_time:
        # Threads of numpy's own wait for work by keeping a core busy: the database's, or another call's.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        return _whole.setdefault(name, importlib.import_module(name))
