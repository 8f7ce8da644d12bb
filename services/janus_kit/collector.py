"""Python's cycle collector in a process that serves for long.

Modules and classes never go away, yet every full collection walks over all of
them with the process stopped, and as many streams open, full collections
become frequent. So what is there once a process serves is set aside, and young
objects are looked at less often: nearly all of them go by reference count.
"""

import gc

# Allocations that were not freed until the young are collected, and so many of those until the older are.
_THRESHOLDS = (20_000, 20, 50)


def settle() -> None:
    """Call it once the process serves: what exists now stays to the end."""
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)


def settle_more() -> None:
    """Call it after importing much, e.g. an SDK; does nothing in a process that did not settle."""
    if gc.get_threshold() == _THRESHOLDS:
        gc.freeze()
