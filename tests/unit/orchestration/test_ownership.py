"""Who may claim when the records come back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from tests.fakes.tasks import running_tasks

from janus_kit.errors import Unavailable
from janus_orchestration.model import Claim
from janus_orchestration.ownership import Ownership


class Leases:
    """Answers in turn with what the test says: an error, or nothing."""

    def __init__(self, *is_away: bool) -> None:
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        self.done = asyncio.Event()
        self._is_away = list(is_away)

    async def claim(self, owner: str, limit: int, lease_s: float, works_on: Sequence[str] = ()) -> list[Claim]:
        self._answer("claim")
        return []

    async def renew(self, owner: str, run_ids: Sequence[str], lease_s: float) -> dict[str, bool]:
        self._answer("renew", *run_ids)
        return dict.fromkeys(run_ids, False)

    def _answer(self, what: str, *run_ids: str) -> None:
        self.asked.append((what, run_ids))
        is_away = bool(self._is_away) and self._is_away.pop(0)
        if not self._is_away:
            self.done.set()
        if is_away:
            raise Unavailable("postgres")


async def test_after_an_outage_leases_are_renewed_before_anybody_claims() -> None:
    leases = Leases(True, True, False, False)
    executions: Any = SimpleNamespace(owner="me", room=1, ids=lambda: ["run_1"])
    ownership = Ownership(leases, executions, lease_s=0.03, poll_s=0.01)
    async with running_tasks(ownership.claim):
        await leases.done.wait()
    assert leases.asked[:4] == [("claim", ()), ("renew", ("run_1",)), ("renew", ("run_1",)), ("claim", ())]
