"""Recall: the best turns and memories for a query.

Hard filters first, in every leg, so that all hits are allowed ones. The lexical
leg finds candidates by an inverted index and scores them, with their
neighbours, by BM25 over four windows; the dense leg searches two views of the
space's vectors. Both run at the same time; a dense leg that is away, or slow,
leaves the lexical one to answer alone and the answer says so. It begins with
the space as the last recall found it, and anew should that be another by now.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from janus_kit.clock import Clock
from janus_kit.errors import InvalidArgument, JanusError, Unavailable, is_late
from janus_kit.libraries import library
from janus_kit.waiting import within
from janus_memory import bm25, fusion
from janus_memory.columns import Columns, joined, nothing
from janus_memory.comparing import cosine
from janus_memory.consistency import RECALL_WAIT_S, caught_up, read_token
from janus_memory.model import (
    Backend,
    Hit,
    Lexicon,
    Neighbour,
    Recalled,
    RecallQuery,
    Space,
    Span,
    View,
    has_direction,
)
from janus_memory.packing import Packing
from janus_memory.parts import Parts
from janus_memory.ports import Embedders, Purpose, Records, Transaction, VectorIndex
from janus_memory.spaces import Spaces
from janus_memory.text import terms

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEXICAL_LIMIT = 300
DENSE_LIMIT = 200
# Where all that was found has more turns around it than this, only the best of each leg get theirs: what is
# around others would not lift them far enough, and most of the time goes there.
_AROUND_LIMIT = 1_500
_AROUND_LEXICAL = 100
_AROUND_DENSE = 50
MAX_TERMS = 64
"""Distinct terms of a query that are searched: the rarest."""
_ENOUGH = 4 * LEXICAL_LIMIT
_UNINDEXED_LIMIT = 512
# An index that was waited for this long in vain rests for a moment; less patience proves nothing.
_PATIENCE_S = 0.25
_REST_S = 2.0
_MOST_SEEN = 10_000
_VIEWS = {"dense_turn": View.ALONE, "dense_before": View.BEFORE}


class _Pending(NamedTuple):
    """Units that a recall compares with by itself: the last that wait for the index. There may be more."""

    units: Sequence[int] = ()
    are_more: bool = False


@dataclass(frozen=True)
class _Dense:
    """What the dense leg found, by leg; or the parts that kept it from answering."""

    found: Mapping[str, Sequence[Neighbour]]
    degraded: tuple[str, ...] = ()
    candidates: Columns = field(default_factory=nothing)
    """What was found, as far as the query's filter allows it."""


class Recall:
    """Answers queries."""

    def __init__(
        self,
        records: Records,
        indexes: Mapping[int, VectorIndex],
        embedders: Embedders,
        spaces: Spaces,
        parts: Parts,
        clock: Clock,
        dense_timeout_s: float,
        remaining_s: Callable[[], float | None],
    ) -> None:
        """``remaining_s`` tells how long the call at hand may still take; None: no limit."""
        self._records = records
        self._indexes = indexes
        self._embedders = embedders
        self._spaces = spaces
        self._parts = parts
        self._clock = clock
        self._dense_timeout_s = dense_timeout_s
        self._remaining_s = remaining_s
        self._resting_until: dict[str, float] = {}
        # Spaces as the last recalls found them, by tenant and name.
        self._seen: dict[tuple[str, str], Space] = {}

    async def run(self, tenant: str, query: RecallQuery) -> Recalled:
        """The best hits, best first. Raises NotFound for a space that is not there."""
        # A tenth of a second that nobody else should wait for.
        await library("numpy")
        pending = await self._pending(tenant, query) if query.token else _Pending()
        seen = self._seen.get((tenant, query.filter.scope.space))
        dense_task: asyncio.Task[_Dense] | None = None
        try:
            if seen is not None and len(query.embedding) in (0, seen.dimensions):
                # Hardly ever is it another by now, and the longest leg need not wait to hear that.
                dense_task = self._started(tenant, seen, query, pending)
                # What takes longest asks first.
                await asyncio.sleep(0)
            async with self._records.transaction(tenant) as tx:
                wanted = list(dict.fromkeys(terms(query.query)))
                space, lexicon = await self._space_with_lexicon(tx, query, wanted)
                if space is None:
                    return Recalled((), (), self._spaces.default_model)
                if dense_task is None or space != seen:
                    if dense_task is not None:
                        dense_task.cancel()
                    dense_task = self._started(tenant, space, query, pending)
                    self._see(tenant, space)
                wanted = rarest(wanted, lexicon, MAX_TERMS)
                matched = await self._matched(tx, space, query, wanted, lexicon)
                if dense_task.done():
                    return await self._answered(tx, space, query, wanted, lexicon, matched, dense_task.result())
            # Waited for without a connection in hand: the leg takes one of its own.
            dense = await dense_task
            async with self._records.transaction(tenant) as tx:
                return await self._answered(tx, space, query, wanted, lexicon, matched, dense)
        finally:
            if dense_task is not None:
                dense_task.cancel()

    async def _answered(
        self,
        tx: Transaction,
        space: Space,
        query: RecallQuery,
        wanted: Sequence[str],
        lexicon: Lexicon,
        matched: Columns,
        dense: _Dense,
    ) -> Recalled:
        """What both legs found, ranked."""
        candidates = await self._pool(tx, space, query, matched, dense)
        ranking = self._rank(space, query, candidates, wanted, lexicon, dense)
        best = ranking.order[: query.limit]
        units = candidates.units[best].tolist()
        is_turn = candidates.turns[best].tolist()
        turns = [unit for unit, turn in zip(units, is_turn, strict=True) if turn]
        others = [unit for unit, turn in zip(units, is_turn, strict=True) if not turn]
        records = await tx.records(space, turns, others)
        hits = tuple(
            Hit(records[unit], float(ranking.total[row]), ranking.details(row) if query.explain else ())
            for unit, row in zip(units, best, strict=True)
            if unit in records
        )
        spans = await _packed(tx, space, query, hits) if query.pack_tokens else ()
        return Recalled(hits, dense.degraded, space.model, spans)

    def _see(self, tenant: str, space: Space) -> None:
        if len(self._seen) >= _MOST_SEEN:
            self._seen.clear()
        self._seen[tenant, space.name] = space

    async def _matched(
        self, tx: Transaction, space: Space, query: RecallQuery, wanted: Sequence[str], lexicon: Lexicon
    ) -> Columns:
        """What the lexical leg finds."""
        chosen = searched(wanted, lexicon, _ENOUGH)
        found = await tx.matching(space.number, chosen, query.filter, LEXICAL_LIMIT)
        if query.filter.filter is not None and len(found) < LEXICAL_LIMIT and len(chosen) < len(wanted):
            # Of what a narrow filter leaves, the rarest terms may have reached next to nothing.
            every = searched(wanted, lexicon, math.inf)
            found = await tx.matching(space.number, every, query.filter, LEXICAL_LIMIT)
        return found

    async def _space(self, tx: Transaction, query: RecallQuery) -> Space | None:
        """The space, or None for a default one without records. Checks the query's vector."""
        # A vector has to be of the default space's length even before there is one.
        find = self._spaces.for_write if query.embedding else self._spaces.for_read
        return _checked(await find(tx, query.filter.scope.space), query)

    async def _space_with_lexicon(
        self, tx: Transaction, query: RecallQuery, wanted: Sequence[str]
    ) -> tuple[Space | None, Lexicon]:
        """``_space``, with what its statistics say of terms."""
        found = await tx.space_with_lexicon(query.filter.scope.space, wanted)
        if found is None:
            return await self._space(tx, query), Lexicon(0, 0, {})
        space, lexicon = found
        return _checked(space, query), lexicon

    async def _pending(self, tenant: str, query: RecallQuery) -> _Pending:
        """What of the token's write the index does not have, after a short wait."""
        async with self._records.transaction(tenant) as tx:
            space = await self._space(tx, query)
            upto = read_token(query.token, space.number if space else 0)
            if space is None or not await tx.unindexed(space.number, upto):
                return _Pending()
        until = asyncio.get_running_loop().time() + RECALL_WAIT_S
        if await caught_up(self._records, tenant, space.number, upto, until):
            return _Pending()
        async with self._records.transaction(tenant) as tx:
            units = await tx.unindexed(space.number, upto)
        return _Pending(units[-_UNINDEXED_LIMIT:], len(units) > _UNINDEXED_LIMIT)

    def _started(self, tenant: str, space: Space, query: RecallQuery, pending: _Pending) -> "asyncio.Task[_Dense]":
        task = asyncio.create_task(self._near(tenant, space, query, pending))
        # Nobody may be left to hear why it failed, when the other leg has failed before.
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return task

    async def _near(self, tenant: str, space: Space, query: RecallQuery, pending: _Pending) -> _Dense:
        """What the dense leg finds, looked up while the other still searches."""
        dense = await self._dense(tenant, space, query, pending)
        units = {each.unit for found in dense.found.values() for each in found}
        if not units:
            return dense
        async with self._records.transaction(tenant) as tx:
            return replace(dense, candidates=await tx.candidates(space.number, sorted(units), query.filter))

    async def _dense(self, tenant: str, space: Space, query: RecallQuery, pending: _Pending) -> _Dense:
        part = f"embedder:{space.model}"
        backend = space.backend.name.lower()
        asked_at = math.inf
        legs: dict[str, list[Neighbour]] = {}
        remaining = self._remaining_s()
        # The other half is for what the lexical leg found.
        wait_s = self._dense_timeout_s if remaining is None else min(self._dense_timeout_s, remaining / 2)
        try:
            async with within(wait_s):
                if time.monotonic() < self._resting_until.get(backend, 0.0):
                    part = backend
                    raise Unavailable(part)
                vector = query.embedding or await self._embedded(space, query.query)
                self._parts.back(part)
                part = backend
                asked_at = time.monotonic()
                index = self._indexes.get(space.backend)
                if index is None:
                    raise Unavailable(part)
                found = await index.search(tenant, space, list(View), vector, query.filter, DENSE_LIMIT, query.exact)
                legs = {leg: list(found[view]) for leg, view in _VIEWS.items()}
                self._parts.back(part)
                if pending.units:
                    part = f"embedder:{space.model}"
                    await self._scan(tenant, space, vector, pending.units, legs)
                return _Dense(legs, ("index",) if pending.are_more else ())
        except (TimeoutError, JanusError) as error:
            if isinstance(error, Unavailable) and error.part == "postgres":
                raise
            # Of vectors in Postgres only the space is slow; others' are not the worse for it.
            alone = part == backend and space.backend is not Backend.PGVECTOR
            if is_late(error) and alone and time.monotonic() - asked_at >= _PATIENCE_S:
                self._resting_until[backend] = time.monotonic() + _REST_S
            self._parts.away(part)
            return _Dense(legs, (part.split(":")[0],))

    async def _embedded(self, space: Space, text: str) -> Sequence[float]:
        [vector] = await self._embedders.named(space.model).embed([text], space.dimensions, Purpose.QUERY)
        if any(vector) and not has_direction(vector):
            raise Unavailable("embedder", "the model gave a vector that cannot be compared")
        return vector

    async def _scan(
        self, tenant: str, space: Space, vector: Sequence[float], units: Sequence[int], legs: dict[str, list[Neighbour]]
    ) -> None:
        """Add units that are not indexed yet, compared one by one: first those that need no model for it."""
        async with self._records.transaction(tenant) as tx:
            waiting = await tx.embeddables(space.number, units)
        found = {leg: {neighbour.unit for neighbour in neighbours} for leg, neighbours in legs.items()}

        def add(leg: str, unit: int, other: Sequence[float]) -> None:
            if unit not in found[leg]:
                legs[leg].append(Neighbour(unit, cosine(vector, other)))

        others = []
        for each in waiting:
            if own := each.own(space.dimensions):
                for leg in _VIEWS:
                    add(leg, each.about.unit, own)
            else:
                others.append(each)
        if not others:
            return
        embedder = self._embedders.named(space.model)
        for leg, view in _VIEWS.items():
            made = await embedder.embed([each.texts[view] for each in others], space.dimensions, Purpose.DOCUMENT)
            for each, vector_of_text in zip(others, made, strict=True):
                add(leg, each.about.unit, vector_of_text)

    async def _pool(
        self, tx: Transaction, space: Space, query: RecallQuery, matched: Columns, dense: _Dense
    ) -> Columns:
        """Everything that is scored: what a leg found, and the turns around it."""
        import numpy as np

        pool = joined([matched, dense.candidates.only(~np.isin(dense.candidates.units, matched.units))])
        if spans := spans_around(pool, bm25.REACH):
            if sum(last - first + 1 for _, first, last in spans) > _AROUND_LIMIT:
                near = ([each.unit for each in found[:_AROUND_DENSE]] for found in dense.found.values())
                best = [matched.units[:_AROUND_LEXICAL], *(np.array(units, np.int64) for units in near)]
                spans = spans_around(pool, bm25.REACH, np.isin(pool.units, np.concatenate(best)))
            around = await tx.around(space.number, spans, query.filter)
            pool = joined([pool, around.only(~np.isin(around.units, pool.units))])
        return pool

    def _rank(
        self,
        space: Space,
        query: RecallQuery,
        candidates: Columns,
        wanted: Sequence[str],
        lexicon: Lexicon,
        dense: _Dense,
    ) -> fusion.Ranking:
        weights = fusion.effective(space.model, space.weights, query.weights)
        legs: dict[str, NDArray[np.float64]] = dict(bm25.scores(candidates, wanted, lexicon))
        for leg, found in dense.found.items():
            legs[leg] = similarities(candidates, found)
        return fusion.Ranking(candidates, legs, weights, query.query, self._clock.now())


async def _packed(tx: Transaction, space: Space, query: RecallQuery, hits: Sequence[Hit]) -> tuple[Span, ...]:
    """The hits, and as far as they leave room the turns that they rest on and those around them."""
    packing = Packing(hits, query.pack_tokens)
    # Kinds say what is to be found. What is shown beside it is allowed by everything else.
    where = replace(query.filter, kinds=())
    if sources := packing.sources():
        packing.add_sources(await tx.cited_turns(space.number, sources, where, packing.most_bytes))
    if spans := packing.around(query.pack_neighbours):
        turns = await tx.turns_around(space.number, spans, where, packing.most_bytes)
        packing.add_around(turns, query.pack_neighbours)
    return packing.spans()


def _checked(space: Space | None, query: RecallQuery) -> Space | None:
    """The space, once the query's vector, if it has one, is known to be of its length."""
    if space is not None and query.embedding and len(query.embedding) != space.dimensions:
        raise InvalidArgument(
            "query_embedding",
            f"must have {space.dimensions} numbers, the dimensions of space '{space.name}'",
            reason="DIMENSION_MISMATCH",
            metadata={"expected": str(space.dimensions), "actual": str(len(query.embedding))},
        )
    return space


def rarest(wanted: Sequence[str], lexicon: Lexicon, limit: int) -> list[str]:
    """So many terms of a query, the rarest, in the query's order."""
    if len(wanted) <= limit:
        return list(wanted)
    kept = set(sorted(wanted, key=lambda term: lexicon.frequencies.get(term, 0))[:limit])
    return [term for term in wanted if term in kept]


def searched(wanted: Sequence[str], lexicon: Lexicon, enough: float) -> dict[str, float]:
    """Terms that candidates are looked for by, with their weight (idf).

    From the rarest on, until they are in more units than are ``enough``: a
    word that is in every other turn finds nothing that the others miss, and
    still counts in the scores.
    """
    chosen: dict[str, float] = {}
    reached = 0
    for term in sorted(wanted, key=lambda term: lexicon.frequencies.get(term, 0)):
        frequency = lexicon.frequencies.get(term, 0)
        if chosen and reached + frequency > enough:
            break
        reached += frequency
        units = max(lexicon.units, frequency)
        chosen[term] = math.log(1 + (units - frequency + 0.5) / (frequency + 0.5))
    return chosen


def spans_around(
    candidates: Columns, reach: int, among: "NDArray[np.bool_] | bool" = True
) -> list[tuple[str, int, int]]:
    """(thread, first, last) positions around turns, overlaps merged. ``among``: whose turns they may be."""
    import numpy as np

    turns = np.flatnonzero(candidates.turns & among)
    if not len(turns):
        return []
    turns = turns[np.argsort(candidates.places[turns])]
    # Of turns in a row, one begins a span if the turns around it do not touch those around the one before.
    begins = np.flatnonzero(np.diff(candidates.places[turns], prepend=-(1 << 40)) > 2 * reach + 1)
    ends = np.append(begins[1:], len(turns)) - 1
    firsts = (candidates.positions[turns[begins]] - reach).tolist()
    lasts = (candidates.positions[turns[ends]] + reach).tolist()
    return [
        (candidates.threads[row], first, last)
        for row, first, last in zip(turns[begins].tolist(), firsts, lasts, strict=True)
    ]


def similarities(candidates: Columns, found: Sequence[Neighbour]) -> "NDArray[np.float64]":
    """Similarity of every candidate; who was not among the nearest gets the least of them."""
    import numpy as np

    if not found:
        return np.zeros(len(candidates))
    units, alike = map(np.array, zip(*found, strict=True))
    order = np.argsort(units)
    places = np.minimum(np.searchsorted(units, candidates.units, sorter=order), len(units) - 1)
    nearest = order[places]
    return np.where(units[nearest] == candidates.units, alike[nearest], alike.min())
