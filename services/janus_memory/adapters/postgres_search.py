"""What Recall reads from Postgres."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from janus_kit.postgres import Connection
from janus_memory.adapters.paging import page
from janus_memory.adapters.postgres_spaces import SPACE_COLUMNS, space_of
from janus_memory.adapters.sql import MEMORY_COLUMNS, TURN_COLUMNS, Bound, allowed, integers, memory_of, quoted, turn_of
from janus_memory.columns import Columns, nothing
from janus_memory.model import ContextTurn, HardFilter, Kind, Lexicon, Memory, Space, Turn
from janus_memory.ports import AllowedUnits
from janus_memory.text import lexeme

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CANDIDATE = "unit, kind, thread, position, session, speaker, occurred_at, importance, bag"
# Many rows of _CANDIDATE as one, whose columns need no decoding: a row each takes the driver five times as long.
_COLUMNS = """string_agg(int8send(unit), '') AS units, string_agg(int2send(kind), '') AS kinds,
    array_agg(thread) AS threads, string_agg(int8send(position), '') AS positions,
    string_agg(int4send(session), '') AS sessions, array_agg(speaker) AS speakers,
    string_agg(timestamptz_send(occurred_at), '') AS times, string_agg(float8send(importance), '') AS importance,
    string_agg(int4send(octet_length(bag)), '') AS sizes, string_agg(bag, '') AS bags"""
# Postgres counts microseconds from 2000. To the driver its infinities are the first moment and the last.
_EPOCH = "2000-01-01"
_FIRST_US, _LAST_US = (
    (end - datetime.fromisoformat(_EPOCH).replace(tzinfo=UTC)) // timedelta(microseconds=1)
    for end in (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
)
# Spans of turns are read by an index that has them in their order: where sorting is out of the question,
# there is only the right one. Of a tenant that the statistics do not know yet, whose rows it takes for one,
# the planner would else read all of them for each span by any index that begins with the tenant.
_BY_POSITION = "SET LOCAL enable_sort = off"
# Of a unit `u`; $2 is the most bytes of a text.
_CONTEXT = """CROSS JOIN LATERAL (
    SELECT t.id, t.thread, t.position, t.session, t.speaker, t.text, t.occurred_at, octet_length(t.text) AS size
    FROM memory.turn t
    WHERE t.space_no = $1 AND t.thread = u.thread AND t.position = u.position AND t.id = u.record_id
      AND octet_length(t.text) <= $2
    OFFSET 0) AS t"""


class SearchStatements:
    """Search documents of one tenant's transaction.

    Matching goes through the view `memory.searchable`; everything else reads
    memory.unit itself.
    """

    _connection: Connection

    async def lexicon(self, space_no: int, terms: Sequence[str]) -> Lexicon:
        rows = await self._connection.fetch(
            """SELECT NULL AS term, units, tokens FROM memory.statistics WHERE space_no = $1
               UNION ALL
               SELECT term, units, 0 FROM memory.lexicon WHERE space_no = $1 AND term = ANY($2::text[])""",
            space_no, list(terms),
        )  # fmt: skip
        totals = next(((row["units"], row["tokens"]) for row in rows if row["term"] is None), (0, 0))
        found = {row["term"]: row["units"] for row in rows if row["term"] is not None}
        return Lexicon(totals[0], totals[1], found)

    async def space_with_lexicon(self, name: str, terms: Sequence[str]) -> tuple[Space, Lexicon] | None:
        row = await self._connection.fetchrow(
            f"""SELECT {SPACE_COLUMNS}, total.units, total.tokens, asked.terms, asked.frequencies
                FROM memory.space s
                LEFT JOIN LATERAL (
                    SELECT units, tokens FROM memory.statistics WHERE space_no = s.number OFFSET 0) AS total ON true
                LEFT JOIN LATERAL (
                    SELECT array_agg(term) AS terms, array_agg(units) AS frequencies FROM memory.lexicon
                    WHERE space_no = s.number AND term = ANY($2::text[])) AS asked ON true
                WHERE name = $1""",  # noqa: S608 - constant columns
            name, list(terms),
        )  # fmt: skip
        if row is None:
            return None
        found = dict(zip(row["terms"] or (), row["frequencies"] or (), strict=True))
        return space_of(row), Lexicon(row["units"] or 0, row["tokens"] or 0, found)

    async def matching(self, space_no: int, terms: Mapping[str, float], where: HardFilter, limit: int) -> Columns:
        if not terms:
            return nothing()
        bound = Bound(space_no, quoted([lexeme(space_no, term) for term in terms]), limit)
        # A term each, and not rows of them: a subquery takes twice as long for every unit. Some more that
        # are none, so that there are few statements to prepare; of an empty one Postgres would give notice.
        each: list[tuple[str | None, float]] = [
            (quoted([lexeme(space_no, term)]), weight) for term, weight in terms.items()
        ]
        each += [(None, 0.0)] * (-len(each) % 4)
        weight = " + ".join(
            f"CASE WHEN terms @@ {bound(term)}::tsquery THEN {bound(weight)}::real ELSE 0 END" for term, weight in each
        )
        return await self._columns(
            f"""SELECT {_COLUMNS} FROM (
                    SELECT {_CANDIDATE} FROM memory.searchable
                    WHERE space_no = $1 AND terms @@ $2::tsquery{allowed(where, bound)}
                    ORDER BY {weight} DESC, unit DESC LIMIT $3) AS found""",  # noqa: S608 - placeholders and constants
            bound,
        )

    async def candidates(self, space_no: int, units: Sequence[int], where: HardFilter) -> Columns:
        bound = Bound(space_no, integers(units))
        return await self._columns(
            f"""SELECT {_COLUMNS} FROM memory.unit
                WHERE space_no = $1 AND unit = ANY($2::text::bigint[]){allowed(where, bound)}""",  # noqa: S608 - placeholders and constants
            bound,
        )

    async def allowed_units(self, space_no: int, where: HardFilter) -> AllowedUnits:
        bound = Bound(space_no)
        row = await self._connection.fetchrow(
            f"""SELECT array_agg(unit) FILTER (WHERE NOT bounded) AS unbounded,
                       array_agg(unit) FILTER (WHERE bounded) AS bounded
                FROM (SELECT unit, num_nonnulls(valid_from, valid_to, expires_at, superseded_at) > 0 AS bounded
                      FROM memory.unit WHERE space_no = $1{allowed(where, bound)}) AS u""",  # noqa: S608 - placeholders and constants
            *bound.values,
        )
        return AllowedUnits(row["unbounded"] or [], row["bounded"] or [])

    async def around(self, space_no: int, spans: Sequence[tuple[str, int, int]], where: HardFilter) -> Columns:
        if not spans:
            return nothing()
        await self._connection.execute(_BY_POSITION)
        threads, firsts, lasts = zip(*spans, strict=True)
        bound = Bound(space_no, list(threads), integers(firsts), integers(lasts))
        return await self._columns(
            f"""SELECT {_COLUMNS}
                FROM unnest($2::text[], $3::text::bigint[], $4::text::bigint[]) AS s (in_thread, first, last)
                CROSS JOIN LATERAL (
                    SELECT {_CANDIDATE} FROM memory.unit
                    WHERE space_no = $1 AND kind = 1 AND thread = s.in_thread
                      AND position BETWEEN s.first AND s.last{allowed(where, bound)}
                    ORDER BY position OFFSET 0) AS a""",  # noqa: S608 - placeholders and constants
            # Without the OFFSET Postgres would rather read the whole space than look up each span.
            bound,
        )

    async def _columns(self, sql: str, bound: Bound) -> Columns:
        """The one row of a statement of _COLUMNS."""
        [row] = await self._connection.fetch(sql, *bound.values)
        if row["units"] is None:
            return nothing()
        import numpy as np

        return Columns(
            units=_integers(row["units"], 8),
            turns=_integers(row["kinds"], 2) == int(Kind.TURN),
            threads=row["threads"],
            positions=_integers(row["positions"], 8),
            numbers=_integers(row["sessions"], 4),
            speakers=row["speakers"],
            occurred_at=np.datetime64(_EPOCH, "us") + np.clip(_integers(row["times"], 8), _FIRST_US, _LAST_US),
            importance=np.frombuffer(row["importance"], ">f8").astype(float),
            lengths=_integers(row["sizes"], 4) // 4,
            hashes=np.frombuffer(row["bags"], "<u4"),
        )

    async def records(self, space: Space, turns: Sequence[int], memories: Sequence[int]) -> dict[int, Turn | Memory]:
        found: dict[int, Turn | Memory] = {}
        if turns:
            rows = await self._connection.fetch(
                f"""SELECT u.unit, t.* FROM memory.unit u
                    CROSS JOIN LATERAL (
                        SELECT {TURN_COLUMNS} FROM memory.turn t
                        WHERE t.space_no = u.space_no AND t.thread = u.thread AND t.position = u.position
                          AND t.id = u.record_id
                        OFFSET 0) AS t
                    WHERE u.space_no = $1 AND u.unit = ANY($2::bigint[])""",  # noqa: S608 - constant columns
                space.number, list(turns),
            )  # fmt: skip
            found.update((row["unit"], turn_of(row, space.name)) for row in rows)
        if memories:
            rows = await self._connection.fetch(
                f"""SELECT u.unit, m.* FROM memory.unit u
                    CROSS JOIN LATERAL (
                        SELECT {MEMORY_COLUMNS} FROM memory.memory m
                        WHERE m.id = u.record_id AND m.version = u.version
                        OFFSET 0) AS m
                    WHERE u.space_no = $1 AND u.unit = ANY($2::bigint[])""",  # noqa: S608 - constant columns
                space.number, list(memories),
            )  # fmt: skip
            found.update((row["unit"], memory_of(row, space.name)) for row in rows)
        return found

    async def cited_turns(
        self, space_no: int, sources: Sequence[tuple[str, str]], where: HardFilter, most_bytes: int
    ) -> dict[tuple[str, str], ContextTurn]:
        threads, ids = zip(*sources, strict=True)
        bound = Bound(space_no, most_bytes, list(threads), list(ids))
        # MATERIALIZED: looked for once. Of a tenant that the statistics do not know yet, a lookup for
        # each source would read all its turns each time.
        rows, _ = await page(
            self._connection,
            len(sources),
            f"""WITH named AS MATERIALIZED (
                    SELECT record_id, thread, position FROM memory.unit
                    WHERE space_no = $1 AND kind = 1 AND record_id = ANY($4::text[]){allowed(where, bound)}
                ), u AS (
                    SELECT s.nth, n.record_id, min(n.thread) AS thread, min(n.position) AS position
                    FROM unnest($3::text[], $4::text[]) WITH ORDINALITY AS s (in_thread, id, nth)
                    JOIN named n ON n.record_id = s.id AND s.in_thread IN ('', n.thread)
                    GROUP BY s.nth, n.record_id HAVING count(*) = 1
                )
                SELECT u.nth, t.* FROM u {_CONTEXT} ORDER BY u.nth""",  # noqa: S608 - placeholders and constants
            *bound.values,
        )
        return {sources[row["nth"] - 1]: _context_turn(row) for row in rows}

    async def turns_around(
        self, space_no: int, spans: Sequence[tuple[str, int, int]], where: HardFilter, most_bytes: int
    ) -> list[ContextTurn]:
        await self._connection.execute(_BY_POSITION)
        threads, firsts, lasts = zip(*spans, strict=True)
        bound = Bound(space_no, most_bytes, list(threads), list(firsts), list(lasts))
        rows, _ = await page(
            self._connection,
            sum(last - first + 1 for _, first, last in spans),
            f"""SELECT t.*
                FROM unnest($3::text[], $4::bigint[], $5::bigint[]) WITH ORDINALITY AS s (in_thread, first, last, nth)
                CROSS JOIN LATERAL (
                    SELECT record_id, thread, position FROM memory.unit
                    WHERE space_no = $1 AND kind = 1 AND thread = s.in_thread
                      AND position BETWEEN s.first AND s.last{allowed(where, bound)}
                    ORDER BY position OFFSET 0) AS u
                {_CONTEXT}
                ORDER BY s.nth""",  # noqa: S608 - placeholders and constants
            *bound.values,
        )
        return [_context_turn(row) for row in rows]


def _integers(sent: bytes, size: int) -> "NDArray[Any]":
    """Integers of so many bytes, as Postgres sends them."""
    import numpy as np

    return np.frombuffer(sent, f">i{size}").astype(np.int64)


def _context_turn(row: Any) -> ContextTurn:
    return ContextTurn(
        id=row["id"],
        thread=row["thread"],
        position=row["position"],
        session=row["session"],
        speaker=row["speaker"],
        text=row["text"],
        occurred_at=row["occurred_at"],
    )
