"""What calls by workers need of the records: two sides that meet in them, and nowhere else.

The owner of a run and the worker's connection may be in different processes.
Failures come as ``janus_kit.errors``.
"""

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import Protocol

from janus_orchestration.dispatching import (
    Answer,
    CallId,
    CallKey,
    ClaimedCall,
    Dispatch,
    NewDispatch,
    News,
    OpenCall,
    Registration,
    Report,
)
from janus_orchestration.model import Tool

Assign = Callable[[Sequence[OpenCall]], Mapping[CallKey, str]]
"""Which connection gets which call; calls that are left out stay open."""


class DispatchRecords(Protocol):
    """The owner's side: calls are put up, watched, and put up again."""

    async def tools(self, tenant: str, names: Collection[str]) -> list[Tool]:
        """Those of the names that a worker has offered, connected now or not."""

    async def dispatch(self, tenant: str, call: NewDispatch) -> Dispatch | None:
        """Put a call up, or find how far it is if it was before. None when a newer owner has the run."""

    async def look(self, tenant: str, keys: Collection[CallKey]) -> dict[CallKey, Dispatch]: ...

    async def resend(self, tenant: str, key: CallKey, lost: Dispatch) -> None:
        """Put a claimed call up for its next try, if nothing has happened to it since it was seen as ``lost``."""

    async def withdraw(self, tenant: str, key: CallKey) -> bool:
        """Let nobody claim an open call any more; False when somebody has."""


class WorkerRecords(Protocol):
    """The workers' side. ``worker`` is the id of a connection."""

    async def register(self, tenant: str, worker: str, registration: Registration, lease_s: float) -> Sequence[int]:
        """Make a worker and its tools known; or refuse, with the places of the tools
        of which other connected workers offer a different kind. Raises
        ResourceExhausted when the tenant has too many tools."""

    async def stop_calls(self, tenant: str, worker: str) -> None:
        """The worker takes no more calls."""

    async def leave(self, tenant: str, worker: str, unsent: Collection[CallId], *, is_awaited: bool) -> None:
        """The worker's stream has ended. It never saw the ``unsent`` calls: they are open again.

        One that ``is_awaited`` was told to connect anew, and runs its calls meanwhile.
        """

    async def claim(self, tenant: str, tools: Collection[str], limit: int, assign: Assign) -> list[ClaimedCall]:
        """Take open calls of these tools, the oldest first."""

    async def reopen(self, tenant: str, workers: Collection[str], known: Collection[CallId]) -> None:
        """Calls that these connections have by the records and not in truth were never sent: they are open again."""

    async def take_back(self, tenant: str, worker: str, worker_id: str, calls: Collection[CallId]) -> list[ClaimedCall]:
        """Calls that the worker got over an earlier connection and still runs, if they are still its own."""

    async def write(self, tenant: str, worker: str, answers: Sequence[Answer], reports: Sequence[Report]) -> None:
        """What a worker said of its calls; of those that are not its own any more, nothing."""

    async def renew(self, workers: Collection[str], lease_s: float) -> set[tuple[str, CallId]]:
        """Keep these connections' leases; which calls each of them has."""

    def news(self) -> AsyncIterator[News]: ...
