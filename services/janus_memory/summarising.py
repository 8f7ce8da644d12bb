"""The rolling summary of threads: what their windows leave out, kept in the background.

A worker, any number on any replica, finds threads with enough turns that no
summary covers, leases one, and puts the next turns into its summary: all but
the newest few, a bounded piece at a time, each kept before the next begins. A
model writes it where one is configured; one that fails, or answers nonsense,
leaves the summary as it was and is asked again later, and after so many
failures the piece is extracted instead, as it is without a model.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Sequence
from uuid import uuid4

from janus_kit.auth.identity import Identity, acting_as
from janus_kit.errors import JanusError, Unavailable
from janus_kit.telemetry.logging import get_logger
from janus_memory.model import Said, Summary, SummaryTask
from janus_memory.ports import Records, SummaryModel
from janus_memory.settings import MemorySettings
from janus_memory.summary_text import accepted, extract, instructions, material, sentences

EXTRACT_AFTER = 5
"""Failures of the model in a row after which a piece is extracted."""
_PIECE_TURNS = 64
_PIECE_CHARS = 24_000
_TURN_CHARS = 2_000
_AT_A_TIME = 16
_LEASE_MARGIN_S = 30.0
_FIRST_DELAY_S = 15.0
_LONGEST_DELAY_S = 3_600.0
# Looking for work costs at most this share of the time, but a summary comes no later than this.
_SEARCH_SHARE = 0.05
_LONGEST_PAUSE_S = 60.0
_LOOKS = 8

_log = get_logger(__name__)


class Pace:
    """How long to wait before the next look for work, where the last one found none.

    Where there are so many threads that looking takes long, it does so every
    time: what took long once was a busy machine, and says nothing of the next.
    """

    def __init__(self, poll_s: float) -> None:
        self._poll_s = poll_s
        self._took = deque([0.0] * _LOOKS, maxlen=_LOOKS)

    def looked(self, seconds: float) -> None:
        """A look took so long."""
        self._took.append(seconds)

    @property
    def pause_s(self) -> float:
        return max(self._poll_s, min(min(self._took) / _SEARCH_SHARE, _LONGEST_PAUSE_S))


class Summariser:
    """Keeps summaries up to date; works on one thread at a time."""

    def __init__(self, records: Records, model: SummaryModel | None, settings: MemorySettings) -> None:
        """``model`` None: summaries are extracted."""
        self._records = records
        self._model = model
        self._keep = settings.summary_keep_turns
        self._due = settings.summary_keep_turns + settings.summary_step_turns
        self._max_chars = settings.summary_max_chars
        self._timeout_s = settings.summary_timeout_s
        self._poll_s = settings.summary_poll_s

    async def run(self) -> None:
        """Work for ever, looking for grown threads every ``summary_poll_s`` seconds."""
        waiting, pace = False, Pace(self._poll_s)
        while True:
            began = time.monotonic()
            try:
                busy = await self.work()
                waiting = False
                pace.looked(time.monotonic() - began)
            except JanusError as error:
                # Postgres is away, or busy; the next round will tell.
                if not waiting:
                    _log.warning("summariser_waits", reason=error.reason, detail=error.message)
                busy, waiting = False, True
            if not busy:
                await asyncio.sleep(pace.pause_s)

    async def work(self) -> bool:
        """One piece of each of some grown threads. Whether there was one."""
        grown = await self._records.grown_threads(self._due, _AT_A_TIME)
        # Replicas that found the same threads begin with different ones.
        random.shuffle(grown)
        busy = False
        for tenant, space_no, thread in grown:
            busy = await self._piece(tenant, space_no, thread) or busy
        return busy

    async def _piece(self, tenant: str, space_no: int, thread: str) -> bool:
        async with self._records.transaction(tenant) as tx:
            lease_s = self._timeout_s + _LEASE_MARGIN_S
            task = await tx.claim_summary(space_no, thread, str(uuid4()), lease_s)
            if task is None:
                return False
            upto = task.last_position - self._keep
            said = await tx.said(space_no, thread, task.summary.upto, upto, _PIECE_TURNS, _TURN_CHARS)
            whole = len(said) < _PIECE_TURNS
        piece = fitting(said, _PIECE_CHARS)
        # Turns that were removed leave gaps; what is not there is covered.
        covered = max(upto, task.summary.upto) if whole and len(piece) == len(said) else piece[-1].position
        try:
            text, attempts = await self._written(tenant, space_no, task, piece)
        except Exception as error:
            if isinstance(error, Unavailable) and error.part == "postgres":
                raise
            if not isinstance(error, JanusError | TimeoutError):
                _log.exception("summary_failed")
            await self._postpone(tenant, space_no, thread, task, getattr(error, "reason", type(error).__name__))
            return True
        async with self._records.transaction(tenant) as tx:
            # Nothing is kept where the thread was erased meanwhile, or the lease ran out.
            await tx.put_summary(space_no, thread, task.lease, Summary(text, covered), attempts)
        return True

    async def _written(self, tenant: str, space_no: int, task: SummaryTask, piece: Sequence[Said]) -> tuple[str, int]:
        """The new summary, and the failures to remember with it."""
        if not piece:
            return task.summary.text, task.attempts
        if self._model is None:
            return await self._extracted(tenant, space_no, task.summary.text, piece), 0
        try:
            return await self._asked(tenant, task.summary.text, piece), 0
        except (JanusError, TimeoutError):
            if task.attempts + 1 < EXTRACT_AFTER:
                raise
        _log.warning("summary_extracted", failures=task.attempts + 1)
        # The next piece asks the model once, and waits for it no longer.
        return await self._extracted(tenant, space_no, task.summary.text, piece), EXTRACT_AFTER - 1

    async def _asked(self, tenant: str, previous: str, piece: Sequence[Said]) -> str:
        assert self._model is not None
        async with asyncio.timeout(self._timeout_s):
            with acting_as(Identity(tenant, "janus-memory", frozenset({"inference.use"}))):
                answer = await self._model.write(instructions(self._max_chars), material(previous, piece))
        text = accepted(answer, self._max_chars)
        if not text:
            raise Unavailable("summary_model", "the model gave an answer that makes no sense")
        return text

    async def _extracted(self, tenant: str, space_no: int, previous: str, piece: Sequence[Said]) -> str:
        choice = await asyncio.to_thread(sentences, previous, piece)
        wanted = sorted(set().union(*(each.terms for each in choice)))
        async with self._records.transaction(tenant) as tx:
            lexicon = await tx.lexicon(space_no, wanted)
        return await asyncio.to_thread(extract, choice, lexicon, self._max_chars)

    async def _postpone(self, tenant: str, space_no: int, thread: str, task: SummaryTask, reason: str) -> None:
        delay = min(_FIRST_DELAY_S * 2**task.attempts, _LONGEST_DELAY_S)
        delay *= random.uniform(0.8, 1.2)  # noqa: S311 - spreads replicas, guards nothing
        async with self._records.transaction(tenant) as tx:
            await tx.postpone_summary(space_no, thread, task.lease, delay)
        _log.warning("summary_postponed", reason=reason, delay_s=round(delay, 1))


def fitting(said: Sequence[Said], max_chars: int) -> list[Said]:
    """The first turns that are at most so many characters together; at least one, if there is one."""
    kept: list[Said] = []
    total = 0
    for turn in said:
        total += len(turn.text)
        if kept and total > max_chars:
            break
        kept.append(turn)
    return kept
