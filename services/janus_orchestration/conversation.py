"""The thread as far as a run's model is shown it."""

from collections.abc import Iterable, Sequence

from janus_orchestration import prompt as prompts
from janus_orchestration.journal import Journal
from janus_orchestration.model import MOST_BYTES, ThreadMessage

MOST_HISTORY = 200
# What a run was asked, at most 4 MiB, and as much of what was before as a prompt may have.
MOST_HISTORY_BYTES = 2 * MOST_BYTES
_MOST_QUERY_CHARS = 8_192


class Conversation:
    """What was before the run, and what the run was asked and has committed since.

    ``history`` is the thread to here, newest last, where it is known.
    """

    def __init__(self, journal: Journal, window_tokens: int, history: Sequence[ThreadMessage] | None) -> None:
        self._journal = journal
        self._window_tokens = window_tokens
        run_id = journal.run.id
        self._is_loaded = history is not None
        self._before = [item for item in history or () if item.run_id != run_id]
        self._own = [item for item in history or () if item.run_id == run_id]

    async def load(self) -> None:
        """Read what is not known yet. The run must have started."""
        if self._is_loaded:
            return
        run = self._journal.run
        # What was said in the same turn before another agent handed it over belongs to it.
        for run_id in await self._journal.turn():
            self._own += await self._journal.messages_of(run_id)
        first = self._own[0].position if self._own else self._journal.thread.last_position + 1
        newest = await self._journal.read(
            lambda records: records.messages(
                run.thread_id, after=first, limit=MOST_HISTORY, descending=True, most_bytes=MOST_HISTORY_BYTES
            )
        )
        self._before = newest[::-1]
        self._is_loaded = True

    def add(self, committed: Iterable[ThreadMessage]) -> None:
        """The run has committed more."""
        self._own.extend(committed)

    def between(self, first: int, last: int) -> list[ThreadMessage] | None:
        """The messages at these positions, both included; None where not all of them are known here."""
        found = [item for item in (*self._before, *self._own) if first <= item.position <= last]
        return found if [item.position for item in found] == list(range(first, last + 1)) else None

    @property
    def query(self) -> str:
        """What the run was asked, for memory to look for."""
        asked = [item.message.text for item in self._own if not item.is_output]
        return "\n".join(text for text in asked if text).strip()[-_MOST_QUERY_CHARS:]

    @property
    def asked(self) -> frozenset[str]:
        """The ids of what the run itself was asked."""
        run_id = self._journal.run.id
        return frozenset(item.message.id for item in self._own if item.run_id == run_id and not item.is_output)

    @property
    def own_bytes(self) -> int:
        """Of the run's own messages, which every prompt of it has."""
        return sum(len(item.message.wire) for item in self._own)

    def window(self) -> tuple[ThreadMessage, ...]:
        """The newest messages within the window; the run's own always."""
        return prompts.window([*self._before, *self._own], self._window_tokens, keep=len(self._own))
