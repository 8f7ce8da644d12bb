"""Answers to what runs wait for: results of clients, decisions and words of people.

An answer is durable when it is acknowledged, whoever works on the run or
nobody. It is given once; what was decided already, by a person or by time, is
not decided again.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from janus_kit import json_schema
from janus_kit.auth.identity import Identity
from janus_kit.errors import FailedPrecondition, InvalidArgument, NotFound
from janus_orchestration import state
from janus_orchestration.executions import Executions
from janus_orchestration.idempotency import Once, once
from janus_orchestration.model import MOST_BYTES, Pending, PendingKind, Run, RunState, Verdict
from janus_orchestration.ports import Records, Store
from janus_orchestration.runs import RunDetails, Runs

# Room for the word that there is no room.
_ALWAYS_BYTES = 1_024
_NAMES = {PendingKind.TOOL: "tool call", PendingKind.APPROVAL: "approval", PendingKind.INPUT: "input"}


@dataclass(frozen=True, slots=True)
class Given:
    """One answer. ``name`` is the id of the call for a TOOL; ``content`` as in ``Pending.answer``."""

    kind: PendingKind
    name: str
    verdict: Verdict
    content: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """Answers to what one run waits for."""

    run_id: str
    given: Sequence[Given]


class Answers:
    """Takes answers for runs of all tenants."""

    def __init__(self, store: Store, executions: Executions, runs: Runs) -> None:
        self._store = store
        self._executions = executions
        self._runs = runs

    async def give(self, caller: Identity, reply: Reply, key: Once[RunDetails]) -> RunDetails | bytes:
        """Take all of these answers, or none.

        Raises NotFound for a run or for what it never asked, FailedPrecondition
        for what is not awaited any more, InvalidArgument for an answer that the
        question does not allow.
        """
        run_id = reply.run_id
        async with self._store.tenant(caller.tenant) as records:

            async def work() -> RunDetails:
                run = await records.lock_run(run_id)
                if run is None:
                    raise NotFound("run", run_id)
                await records.expire_pending(run_id)
                awaited = [await _awaited(records, run, each) for each in reply.given]
                await _require_room(records, run, reply.given)
                for each, pending in zip(reply.given, awaited, strict=True):
                    await records.answer_pending(run_id, pending.id, each.verdict, each.content, caller.subject)
                await records.wake(run_id)
                return await self._runs.described(records, caller.tenant, run)

            result = await once(records, key, work)
        self._executions.answered(run_id)
        return result


async def _require_room(records: Records, run: Run, given: Sequence[Given]) -> None:
    """Results must fit into the run's next prompt: one that is acknowledged is not cut later. Small ones always do."""
    if not any(each.kind is PendingKind.TOOL for each in given):
        return
    # What was said in the same turn before another agent handed it over belongs to it.
    turn = [each.run_id for each in await records.lineage(run.id) if each.thread_id == run.thread_id]
    left = MOST_BYTES - await records.bytes_of(run.id, turn)
    for place, each in enumerate(given):
        room = max(left, _ALWAYS_BYTES)
        if len(each.content) > room:
            raise InvalidArgument(
                f"results.results[{place}]", f"must be at most {room} bytes, all that the run has left"
            )
        left -= len(each.content)


async def _awaited(records: Records, run: Run, given: Given) -> Pending:
    what = _NAMES[given.kind]
    pending = await records.find_pending(run.id, given.kind, given.name)
    if pending is None:
        raise NotFound(what, given.name)
    subject = f"{what}/{given.name}"
    if pending.verdict is not None:
        by = pending.verdict.value if pending.in_time else Verdict.EXPIRED.value
        raise FailedPrecondition(
            "STATE_CONFLICT", f"the {what} is not awaited any more: {by}", {"state": by.upper()}, subject=subject
        )
    if state.is_terminal(run.state) or run.state is RunState.CANCELLING:
        how = run.state.value
        raise FailedPrecondition(
            "STATE_CONFLICT", f"the run does not wait any more: {how}", {"state": how.upper()}, subject=subject
        )
    if given.kind is PendingKind.INPUT:
        schema = json.loads(pending.schema_json) if pending.schema_json else {"type": "string"}
        if problem := json_schema.problem(json.loads(given.content), schema):
            raise InvalidArgument("answer.answer_json", f"must hold to the question's schema: {problem}")
    return pending
