"""The work of an Extract: turns are shown to a model, some at a time, and what it proposes becomes memories.

Everything that comes of some turns is one transaction: the memories, how far
the thread is read, the report, and where to go on after a crash. It is made
only while the operation is ours and all that the model was shown is on record
as it was; otherwise the answer is thrown away, and what there is now is shown.
So nothing is applied twice, nothing is made of what was erased meanwhile, and
two extractions of one thread take turns.

An answer that cannot be used changes nothing. It is asked for a few times, and
then kept as a dead letter while the next turns are read.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import accumulate
from typing import Any, NamedTuple

from janus_kit.auth.identity import Identity, acting_as
from janus_kit.clock import Clock
from janus_kit.errors import Aborted, DeadlineExceeded, InvalidArgument, JanusError, NotFound
from janus_kit.telemetry.logging import get_logger
from janus_memory.extraction import (
    Action,
    Answered,
    DeadAnswer,
    Entry,
    ExtractionModel,
    Proposal,
    Report,
    Shown,
    Source,
    Step,
    home,
)
from janus_memory.extraction_text import (
    CHANGEABLE,
    SCHEMA,
    Unusable,
    decided,
    instructions,
    material,
    read,
)
from janus_memory.model import (
    Cause,
    Change,
    HardFilter,
    Kind,
    Memory,
    NewMemory,
    Operation,
    RecallQuery,
    Role,
    Scope,
    Space,
    Weights,
)
from janus_memory.ports import Progress, Records, Transaction
from janus_memory.recall import Recall
from janus_memory.remember import Kept, keep
from janus_memory.versions import change_memory, digest, hold, succeeded

TRIES = 3
"""Answers to the same turns that cannot be used, after which they are a dead letter."""
TURNS = 24
"""Turns that a model is shown at once, unless that is too much for it."""
_CHARS = 16_000
_TURN_CHARS = 4_000
_BEFORE_TURNS = 4
_BEFORE_CHARS = 600
_KNOWN = 60
_QUERY_CHARS = 4_000
_DEAD_CHARS = 4_000
_MOVES = 5
_KINDS = (*sorted(CHANGEABLE), Kind.EVENT)

_log = get_logger(__name__)


class _Moved(Exception):
    """What the model was shown is not on record any more as it was."""


class _TooMuch(Exception):
    """The model has no room, or no time, for so many turns at once."""


class _Outcome(NamedTuple):
    """What came of showing turns: what is to be done, what broke a rule; or (``why``) an answer of no use."""

    steps: Sequence[Step] = ()
    rejected: int = 0
    why: str = ""
    answer: str = ""


class Extraction:
    """Implements ports.Handler for operations that `Extract` starts."""

    def __init__(
        self,
        records: Records,
        recall: Recall,
        model: ExtractionModel,
        clock: Clock,
        report_of: Callable[[Report], Mapping[str, Any]],
    ) -> None:
        """``report_of`` makes the operation's result of a report."""
        self._records = records
        self._recall = recall
        self._model = model
        self._clock = clock
        self._report_of = report_of

    async def run(self, tenant: str, operation: Operation, progress: Progress) -> Mapping[str, Any]:
        async with self._records.transaction(tenant) as tx:
            space = await tx.space_numbered(operation.arguments["space_no"])
        if space is None:
            raise NotFound("space", operation.arguments["scope"]["space"])
        reading = _Reading(self._records, self._recall, self._model, self._clock, tenant, space, operation, progress)
        with acting_as(Identity(tenant, "janus-memory", frozenset({"inference.use"}))):
            return self._report_of(await reading.run())

    async def undo(self, tenant: str, operation: Operation) -> bool:
        # What was made of some turns is whole by itself.
        return True


class _Reading:
    """One run over what is left of an operation's turns."""

    def __init__(
        self,
        records: Records,
        recall: Recall,
        model: ExtractionModel,
        clock: Clock,
        tenant: str,
        space: Space,
        operation: Operation,
        progress: Progress,
    ) -> None:
        self._records = records
        self._recall = recall
        self._model = model
        self._clock = clock
        self._tenant = tenant
        self._space = space
        self._operation = operation
        self._progress = progress
        self._asked = Scope(**operation.arguments["scope"])
        self._only: Sequence[int] | None = operation.arguments["only"]
        self._after: int = operation.cursor.get("after", 0)
        self._report = Report.of(operation.cursor.get("report", {}))
        self._usage = self._report.usage
        self._turns = TURNS
        self._strict = True

    async def run(self) -> Report:
        """Read to the end."""
        moves = 0
        while True:
            was, piece = await self._next()
            if not piece:
                return self._report
            try:
                await self._read(was, piece)
                moves = 0
            except _TooMuch:
                self._turns = len(piece) // 2
            except _Moved:
                moves += 1
                if moves > _MOVES:
                    raise Aborted("VERSION_MISMATCH", "what is read changes all the time") from None

    async def _next(self) -> tuple[int, list[Source]]:
        """Up to where the thread was read before, and the next turns."""
        async with self._records.transaction(self._tenant) as tx:
            was = 0 if self._only else await tx.extracted_upto(self._space.number, self._asked)
            upto = self._operation.arguments["upto"]
            after = max(self._after, was)
            found = await tx.sources(self._space.number, self._asked, after, upto, self._only, self._turns, _TURN_CHARS)
        sizes = accumulate(len(source.text) for source in found)
        return was, [source for source, size in zip(found, sizes, strict=True) if size <= _CHARS] or found[:1]

    async def _read(self, was: int, piece: Sequence[Source]) -> None:
        # What the application told the model is no part of what was said.
        said = [source for source in piece if source.role is not Role.SYSTEM and source.text.strip()]
        shown = await self._shown(said) if said else Shown(())
        outcome = await self._asked_model(shown, alone=len(piece) == 1) if said else _Outcome()
        if outcome.why:
            _log.warning("extraction_unusable", operation=self._operation.id, why=outcome.why, turns=len(piece))
        await self._apply(was, piece, shown, outcome)

    async def _shown(self, said: Sequence[Source]) -> Shown:
        async with self._records.transaction(self._tenant) as tx:
            before = await tx.sources_before(
                self._space.number, self._asked, said[0].position, _BEFORE_TURNS, _BEFORE_CHARS
            )
        texts: dict[Scope, list[str]] = {}
        for source in said:
            texts.setdefault(home(self._asked, source.subject), []).append(source.text)
        most = max(_KNOWN // len(texts), 2)
        known = [memory for scope, about in texts.items() for memory in await self._known(scope, about, most)]
        return Shown(said, [source for source in before if source.role is not Role.SYSTEM], known)

    async def _known(self, scope: Scope, about: Sequence[str], most: int) -> list[Memory]:
        """What is remembered in a scope: the newest, and what is closest to what is said."""
        now = self._clock.now()
        where = HardFilter(scope, _KINDS, now, None, now)
        async with self._records.transaction(self._tenant) as tx:
            newest, _ = await tx.listed(self._space, where, None, most // 2)
        query = "\n".join(about)[:_QUERY_CHARS]
        close = await self._recall.run(self._tenant, RecallQuery(query, most, where, Weights()))
        found = [*newest, *(hit.record for hit in close.hits if isinstance(hit.record, Memory))]
        # An empty field of a filter is any; one of a scope is none.
        return list({memory.id: memory for memory in found if memory.scope == scope}.values())[:most]

    async def _asked_model(self, shown: Shown, *, alone: bool) -> _Outcome:
        """What the model proposes; raises _TooMuch when fewer turns may help."""
        given = material(shown)
        outcome = _Outcome()
        for _ in range(TRIES):
            try:
                answered = await self._answer(given)
            except InvalidArgument as error:
                if error.reason == "CONTEXT_TOO_LONG" and not alone:
                    raise _TooMuch from None
                if error.reason not in {"CONTEXT_TOO_LONG", "PROVIDER_REJECTED_REQUEST"}:
                    raise
                return _Outcome(why=f"the request was refused: {error.reason}")
            except DeadlineExceeded:
                if not alone:
                    raise _TooMuch from None
                raise
            if answered.end == "cut" and not alone:
                raise _TooMuch
            try:
                return _Outcome(*decided(self._asked, shown, _proposals(answered), self._clock.now()))
            except Unusable as error:
                outcome = _Outcome(why=str(error), answer=answered.text)
        return outcome

    async def _answer(self, given: str) -> Answered:
        """One answer: held to the schema, or only asked to hold to it where nothing can."""
        arguments = self._operation.arguments
        try:
            answered = await self._model.answer(
                arguments["model"],
                instructions(arguments["guidance"], schema=not self._strict),
                given,
                SCHEMA if self._strict else None,
            )
        except InvalidArgument as error:
            if error.reason == "MODEL_NOT_FOUND":
                raise InvalidArgument(
                    "model", "must be a configured model", reason=error.reason, metadata=error.metadata
                ) from error
            if not self._strict or error.reason not in {"CAPABILITY_UNSUPPORTED", "PROVIDER_REJECTED_REQUEST"}:
                raise
            self._strict = False
            return await self._answer(given)
        self._usage = self._usage.plus(answered.usage)
        return answered

    async def _apply(self, was: int, piece: Sequence[Source], shown: Shown, outcome: _Outcome) -> None:
        """All that comes of some turns. Raises _Moved, and nothing has come of them."""
        number, last = self._space.number, piece[-1].position
        subjects = sorted({source.subject for source in (*shown.turns, *shown.before)} - {""})
        report = Report.of(self._report.saved())
        report.turns += len(piece)
        report.rejected += outcome.rejected
        report.usage = self._usage
        async with self._records.transaction(self._tenant) as tx:
            # Before any row, as an erasure does it; and nobody changes what is known from here on.
            await tx.hold_subjects(subjects)
            await tx.lock_remembering(number)
            await self._must_be_as_shown(tx, shown)
            report.add([await self._do(tx, step) for step in outcome.steps])
            if outcome.steps:
                await tx.enqueue(number)
            if outcome.why:
                report.unusable += len(piece)
                await tx.add_dead_letter(number, self._dead_letter(piece, shown, subjects, outcome))
            if not self._only and not await tx.move_extracted(number, self._asked, was, last):
                raise _Moved
            cursor = {"after": last, "report": report.saved()}
            total = max(self._operation.arguments["turns"], report.turns)
            await self._progress.save(cursor, done=report.turns, total=total, phase=f"read up to turn {last}", tx=tx)
        self._report, self._after = report, last

    async def _must_be_as_shown(self, tx: Transaction, shown: Shown) -> None:
        said = [*shown.turns, *shown.before]
        turns = await tx.known_turns(self._space.number, self._asked.thread, [source.id for source in said])
        known = await tx.known_memories(self._space.number, [memory.id for memory in shown.known], [])
        current = {(memory.id, memory.version) for memory in known if memory.current}
        if {(name, turn.position) for name, turn in turns.items()} != {(each.id, each.position) for each in said}:
            raise _Moved
        if current != {(memory.id, memory.version) for memory in shown.known}:
            raise _Moved

    async def _do(self, tx: Transaction, step: Step) -> Entry:
        proposal, source, now = step.proposal, step.source, self._clock.now()
        kind = step.known.kind if step.known else proposal.kind

        def entry(action: Action, memory_id: str = "", note: str = step.note) -> Entry:
            return Entry(action, memory_id, kind, source.id, note)

        if step.action is Action.NOTHING:
            return entry(Action.NOTHING)
        cause = Cause(self._operation.requested_by, source.id, proposal.reason)
        if step.known is None:
            kept = await self._keep(tx, step, kind, proposal.since, cause)
            return entry(Action.ADD, kept.id) if kept.fresh else entry(Action.NOTHING, kept.id, "it is known")
        held = await hold(tx, step.known.id)
        if held is None or held.latest.memory.version != step.known.version:
            return entry(Action.NOTHING, step.known.id, "it was changed by another of the same turns")
        memory = held.latest.memory
        since = proposal.since or min(source.occurred_at, now)
        if step.action is Action.INVALIDATE:
            if memory.valid_from and since <= memory.valid_from:
                return entry(Action.NOTHING, memory.id, "it would end before it begins")
            await change_memory(tx, held, Change.INVALIDATED, replace(memory, valid_to=since), cause)
            return entry(Action.INVALIDATE, memory.id)
        kept = await self._keep(tx, step, kind, since, cause)
        if kept.id == memory.id:
            return entry(Action.NOTHING, memory.id, "it is known")
        # Both meet at one moment, so that at any time one of them is on record.
        taken = await tx.latest_version(kept.id)
        at = max(held.at, taken.memory.recorded_at) if taken and kept.fresh else held.at
        await change_memory(tx, held._replace(at=at), Change.SUPERSEDED, succeeded(memory, kept.id), cause)
        return entry(Action.UPDATE, kept.id)

    async def _keep(self, tx: Transaction, step: Step, kind: Kind, since: datetime | None, cause: Cause) -> Kept:
        proposal, source = step.proposal, step.source
        scope = home(self._asked, source.subject)
        resting_on = {"message_id": source.id, "quote": proposal.quote, "origin": int(source.origin)}
        memory = NewMemory(
            id="",
            kind=kind,
            text=proposal.text,
            scope=scope,
            predicate=proposal.predicate,
            provenance_json=json.dumps([resting_on]),
            valid_from=since,
            valid_to=None,
            expires_at=None,
            importance=0.5,
            metadata_json="",
            embedding=(),
            digest=digest(kind, proposal.text, scope),
        )
        [kept] = await keep(tx, self._space, [memory], cause, self._clock.now(), _raise)
        assert kept is not None
        return kept

    def _dead_letter(
        self, piece: Sequence[Source], shown: Shown, subjects: Sequence[str], outcome: _Outcome
    ) -> DeadAnswer:
        only = [source.position for source in piece]
        return DeadAnswer(
            subjects=subjects,
            arguments={**self._operation.arguments, "only": only, "upto": only[-1], "turns": len(only)},
            requested_by=self._operation.requested_by,
            reason=outcome.why,
            answer=outcome.answer.replace("\x00", "")[:_DEAD_CHARS],
            recorded_at=min(source.recorded_at for source in (*shown.turns, *shown.before)),
        )


def _proposals(answered: Answered) -> list[Proposal]:
    """What a model proposes. Raises Unusable."""
    if answered.end == "whole":
        return read(answered.text)
    raise Unusable("the answer was cut off" if answered.end == "cut" else "the model declined")


def _raise(place: int, error: JanusError) -> None:
    raise error
