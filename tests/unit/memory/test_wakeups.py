"""Events of operations within a process."""

from __future__ import annotations

from janus_memory.operations import Wakeups


def test_who_waits_for_an_operation_is_woken_by_it_and_by_all() -> None:
    wakeups = Wakeups()
    with wakeups.watching("a") as first, wakeups.watching("a") as second, wakeups.watching("b") as other:
        wakeups.wake("a")
        assert (first.is_set(), second.is_set(), other.is_set()) == (True, True, False)
        wakeups.wake("")
        assert other.is_set()


def test_who_waits_for_any_operation_is_woken_by_each() -> None:
    wakeups = Wakeups()
    with wakeups.watching("") as any_of_them:
        wakeups.wake("a")
        assert any_of_them.is_set()


def test_nothing_is_left_of_who_left() -> None:
    wakeups = Wakeups()
    with wakeups.watching("a"), wakeups.watching("a"):
        pass
    wakeups.wake("a")
    assert not vars(wakeups)["_waiting"]
