"""The recall of a turn: once, before its first model call."""

from collections.abc import Sequence
from dataclasses import replace

from janus_kit.errors import JanusError, NotFound
from janus_kit.telemetry.logging import get_logger
from janus_orchestration import prompt as prompts
from janus_orchestration import scopes
from janus_orchestration.events import MemoryRecalled
from janus_orchestration.interrupt import Interrupt
from janus_orchestration.journal import Changes, Journal
from janus_orchestration.model import MemoryPolicy, Recalled, RecalledHit, StepKind, ThreadMessage
from janus_orchestration.ports import EventCodec, Memory

_log = get_logger(__name__)

_MOST_HITS = 200
_MOST_SPARE_HITS = 32
# Of all hits together: they travel in one event.
_MOST_RECALLED_BYTES = 1024 * 1024


class Recalling:
    """What memory has to say to a run."""

    def __init__(
        self,
        journal: Journal,
        policy: MemoryPolicy,
        interrupt: Interrupt,
        *,
        memory: Memory,
        codec: EventCodec,
        timeout_s: float,
    ) -> None:
        self._journal = journal
        self._policy = policy
        self._interrupt = interrupt
        self._memory = memory
        self._codec = codec
        self._timeout_s = timeout_s
        self._recalled: Recalled | None = None

    async def ask(self, query: str, conversation: Sequence[ThreadMessage]) -> Changes:
        """Ask memory; a run goes on without one that is away or too slow.

        What the conversation holds anyway is not recalled: some more are asked
        for, so that enough others remain. What is returned is to be committed
        together with the model call's start.
        """
        step = self._journal.begun(StepKind.RECALL)
        policy = self._policy
        present = {item.message.id for item in conversation}
        limit = min(policy.recall_limit + min(len(present), _MOST_SPARE_HITS), _MOST_HITS)
        scope = scopes.to_recall(policy, self._journal.thread)
        try:
            async with self._interrupt.may_cut():
                found = await self._memory.recall(scope, query, limit, self._timeout_s)
            others = [hit for hit in found.hits if hit.record_id not in present]
            best = prompts.hits_within(others[: policy.recall_limit], _MOST_RECALLED_BYTES)
            recalled = replace(found, hits=best)
        except NotFound:
            # A space that is not there is a mistake in the agent, not an outage.
            raise
        except JanusError as error:
            _log.warning("recall_failed", reason=error.reason, code=error.code)
            recalled = Recalled(degraded=("memory",))
        self._recalled = recalled
        ended = self._journal.ended(step, summary=f"{len(recalled.hits)} recalled")
        self._journal.steps[ended.index] = ended
        return Changes(steps=(ended,), events=(MemoryRecalled(recalled),))

    async def hits(self) -> tuple[RecalledHit, ...]:
        """What was recalled, maybe by an earlier owner."""
        if self._recalled is None:
            run_id = self._journal.run.id
            told = await self._journal.read(lambda records: records.events_of_kind(run_id, MemoryRecalled.kind))
            self._recalled = self._codec.recalled(told[-1].wire) if told else Recalled()
        return self._recalled.hits
