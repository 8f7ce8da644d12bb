"""The recall of a turn: once, before its first model call."""

from collections.abc import Sequence, Set
from dataclasses import replace

from janus_kit.errors import JanusError, NotFound
from janus_kit.telemetry.logging import get_logger
from janus_orchestration import prompt as prompts
from janus_orchestration import scopes
from janus_orchestration.events import MemoryRecalled
from janus_orchestration.interrupt import Interrupt
from janus_orchestration.journal import Changes, Journal
from janus_orchestration.model import MemoryPolicy, MemoryScope, Recalled, StepKind, ThreadMessage
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

        What the conversation holds anyway is not recalled, nor what has no
        words: some more are asked for, so that enough others remain. What is returned is to be committed
        together with the model call's start.
        """
        step = self._journal.begun(StepKind.RECALL)
        recalled = Recalled()
        try:
            if self._policy.recall_limit and query:
                recalled = await self._found(query, {item.message.id for item in conversation})
            if summarizes(self._policy, conversation):
                recalled = replace(recalled, summary=await self._summary(conversation))
        except NotFound:
            # A space that is not there is a mistake in the agent, not an outage.
            raise
        except JanusError as error:
            _log.warning("recall_failed", reason=error.reason, code=error.code)
            recalled = replace(recalled, degraded=tuple(dict.fromkeys((*recalled.degraded, "memory"))))
        self._recalled = recalled
        ended = self._journal.ended(step, summary=f"{len(recalled.hits)} recalled")
        self._journal.steps[ended.index] = ended
        return Changes(steps=(ended,), events=(MemoryRecalled(recalled),))

    async def _found(self, query: str, present: Set[str]) -> Recalled:
        spare = min(len(present) + self._policy.recall_limit, _MOST_SPARE_HITS)
        limit = min(self._policy.recall_limit + spare, _MOST_HITS)
        scope = scopes.to_recall(self._policy, self._journal.thread)
        async with self._interrupt.may_cut():
            found = await self._memory.recall(scope, query, limit, self._timeout_s)
        others = [hit for hit in found.hits if hit.record_id not in present]
        best = prompts.hits_within(others[: self._policy.recall_limit], _MOST_RECALLED_BYTES)
        return replace(found, hits=best)

    async def _summary(self, conversation: Sequence[ThreadMessage]) -> str:
        """Of what is before the conversation's window; memory has what the run itself is asked only later."""
        scope = MemoryScope(self._policy.space, thread=self._journal.thread.id)
        shown = sum(item.run_id != self._journal.run.id for item in conversation)
        async with self._interrupt.may_cut():
            return await self._memory.summary(scope, shown, self._timeout_s)

    async def recalled(self) -> Recalled:
        """What was recalled, maybe by an earlier owner."""
        if self._recalled is None:
            run_id = self._journal.run.id
            told = await self._journal.read(lambda records: records.events_of_kind(run_id, MemoryRecalled.kind))
            self._recalled = self._codec.recalled(told[-1].wire) if told else Recalled()
        return self._recalled


def summarizes(policy: MemoryPolicy, conversation: Sequence[ThreadMessage]) -> bool:
    """Whether there is more of the thread than its window shows, and the agent wants that in short."""
    return policy.summarize and bool(conversation) and conversation[0].position > 1
