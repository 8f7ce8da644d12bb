"""What may cut a run's work short: a cancel, its budget of wall time, or the stop of its process.

Only calls to other services are cut; what is being journalled is finished
first.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class CancelRequested(Exception):
    """Somebody asked for the run to stop; ``reason`` in their words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class WallTimeSpent(Exception):
    """The run has worked for as long as it may."""


class Leaving(Exception):
    """The process stops, and what the run needs has stopped already: another one goes on with it."""


class Interrupt:
    """One run's switch. Used by the task that works on the run; ``cancel`` and ``leave`` by anybody."""

    def __init__(self) -> None:
        self.is_leaving = False
        """Whether the process stops soon; what is under way may still end."""
        self._reason: str | None = None
        self._ends_at: float | None = None
        self._task: asyncio.Task[object] | None = None

    def cancel(self, reason: str) -> None:
        """Close the call that is under way, now, and let no other begin."""
        if self._reason is None:
            self._reason = reason
            if self._task is not None:
                self._task.cancel()

    def leave(self) -> None:
        """The process stops soon."""
        self.is_leaving = True

    def limit(self, seconds: float) -> None:
        """From now on, work for at most so long."""
        self._ends_at = asyncio.get_running_loop().time() + seconds

    def check(self) -> None:
        """Raise CancelRequested after a cancel."""
        if self._reason is not None:
            raise CancelRequested(self._reason)

    @asynccontextmanager
    async def may_cut(self) -> AsyncIterator[None]:
        """Within, a cancel or the end of the budget cuts what is awaited.

        Raises CancelRequested or WallTimeSpent then.
        """
        self.check()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        try:
            async with asyncio.timeout_at(self._ends_at) as budget:
                yield
        except asyncio.CancelledError:
            # Of two cancels, the one that ends the process counts.
            if self._is_ours(task):
                self.check()
            raise
        except TimeoutError:
            if budget.expired():
                raise WallTimeSpent from None
            raise
        finally:
            self._task = None

    def _is_ours(self, task: asyncio.Task[object]) -> bool:
        return self._reason is not None and task.uncancel() == 0
