"""Erasures in Postgres.

Locks are taken in the order in which writers and the indexer take them: the
subject, threads, memories, units, outbox rows, statistics.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from janus_kit.postgres import Connection
from janus_memory.adapters.postgres_generations import GenerationStatements
from janus_memory.adapters.postgres_outbox import REACH_BEFORE
from janus_memory.adapters.postgres_spaces import SpaceStatements
from janus_memory.adapters.postgres_turns import CHANNEL
from janus_memory.adapters.postgres_units import UnitStatements
from janus_memory.erasure import Outside, Target
from janus_memory.model import Space

_UNIT, _AROUND, _WINDOW, _SOURCE = 1, 2, 3, 4

# $1 is the subject, $2 the space's number or 0 for all. The first condition is
# what the partial indexes ask for.
_ITS = "subject <> '' AND subject = $1 AND ($2::bigint = 0 OR space_no = $2)"


class _Table(NamedTuple):
    """A table whose rows of a subject go by themselves: its store's name, and which rows, by $1 and $2 or `_ITS`."""

    store: str
    name: str
    condition: str


_TABLES = (
    _Table("postgres.block", "block", _ITS),
    # What waits to be imported is not known by subject: such an import fails, and can be sent again.
    _Table("postgres.import", "import_part", "$1::text <> '' AND $2::bigint >= 0"),
    _Table("postgres.request", "request", "$1 = ANY(subjects) AND $2::bigint >= 0"),
    _Table(
        "postgres.operation",
        "operation",
        "$1 = ANY(subjects) AND ($2::bigint = 0 OR coalesce((arguments ->> 'space_no')::bigint, $2) = $2)",
    ),
    _Table("postgres.dead_letter", "dead_letter", "$1 = ANY(subjects) AND ($2::bigint = 0 OR space_no = $2)"),
    _Table("postgres.extraction", "extraction", _ITS),
)

# The key of vectors has these before the unit: named, a unit's are found without a scan of the space's.
_EVERY_FORM = """ AND view BETWEEN 0 AND 2 AND generation IN (
    SELECT generation FROM memory.space WHERE number = $1
    UNION ALL SELECT generation FROM memory.generation WHERE space_no = $1)"""

# The sources of memories that were a record of the subject. A turn's id is
# unique in its thread only: a memory of another thread means another turn.
_GONE = """gone AS (
    SELECT split_part(ref, ' ', 1) AS thread, split_part(ref, ' ', 2) AS id FROM memory.erasing
    WHERE subject = $1 AND ($2::bigint = 0 OR space_no = $2) AND kind = 4
)"""
# Whether a memory `m` may cite what is gone as this source. Each set is hashed once, whatever the planner knows of the
# tables: of a tenant that is newer than the statistics, all that is gone was else looked through for each source.
_CITED = """coalesce(
    CASE WHEN NOT source ? 'message_id' THEN source ->> 'memory_id' IN (SELECT id FROM gone WHERE thread = '')
         WHEN m.thread = '' THEN source ->> 'message_id' IN (SELECT id FROM gone WHERE thread <> '')
         ELSE (m.thread, source ->> 'message_id') IN (SELECT thread, id FROM gone WHERE thread <> '') END, false)"""


class ErasureStatements(SpaceStatements, UnitStatements, GenerationStatements):
    """Implements erasure.Erasing."""

    _connection: Connection

    async def begin_erasure(self, target: Target) -> None:
        await self._connection.execute(
            "INSERT INTO memory.erasure (subject, space_no) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            target.subject, target.space_no,
        )  # fmt: skip

    async def erase_some(self, target: Target, limit: int) -> Mapping[str, int]:
        await self._lock_erasing(target.subject)
        space_no = await self._connection.fetchval(
            f"""(SELECT space_no FROM memory.turn WHERE {_ITS} LIMIT 1)
                UNION ALL (SELECT space_no FROM memory.memory WHERE {_ITS} LIMIT 1)
                UNION ALL (SELECT space_no FROM memory.unit WHERE {_ITS} LIMIT 1) LIMIT 1""",  # noqa: S608 - constants
            target.subject, target.space_no,
        )  # fmt: skip
        if space_no is not None:
            return await self._erase_records(target.subject, space_no, limit)
        removed = Counter[str]()
        for table in _TABLES:
            removed[table.store] += _count(
                await self._connection.execute(
                    f"""DELETE FROM memory.{table.name} WHERE ctid IN (
                            SELECT ctid FROM memory.{table.name} WHERE {table.condition} LIMIT $3)""",  # noqa: S608 - constants
                    target.subject,
                    target.space_no,
                    limit,
                )
            )
        return {store: count for store, count in removed.items() if count}

    async def keep_out_writers(self, subject: str) -> None:
        await self._connection.execute(
            "SELECT pg_advisory_xact_lock(memory.subject_key(current_setting('janus.tenant'), $1))", subject
        )

    async def left_of(self, target: Target) -> Mapping[str, int]:
        counted = [
            ("postgres.turn", "turn", _ITS),
            ("postgres.memory", "memory", _ITS),
            ("postgres.unit", "unit", _ITS),
        ]
        return {
            store: await self._connection.fetchval(
                f"SELECT count(*) FROM memory.{name} WHERE {condition}",  # noqa: S608 - constants
                target.subject, target.space_no,
            )
            for store, name, condition in (*counted, *_TABLES)
        }  # fmt: skip

    async def uncite(self, target: Target, limit: int) -> int:
        await self._lock_erasing(target.subject)
        status = await self._connection.execute(
            f"""WITH {_GONE}, hit AS (
                    SELECT m.id, m.version FROM memory.memory m
                    WHERE m.provenance_json <> '[]' AND EXISTS (SELECT FROM gone) AND EXISTS (
                        SELECT FROM jsonb_array_elements(m.provenance_json::jsonb) AS source WHERE {_CITED})
                    LIMIT $3
                )
                UPDATE memory.memory m SET provenance_json = (
                    SELECT coalesce(jsonb_agg(source ORDER BY place), '[]')::text
                    FROM jsonb_array_elements(m.provenance_json::jsonb) WITH ORDINALITY AS s (source, place)
                    WHERE NOT {_CITED})
                FROM hit WHERE m.id = hit.id AND m.version = hit.version""",  # noqa: S608 - constants
            target.subject, target.space_no, limit,
        )  # fmt: skip
        return _count(status)

    async def outside(self, target: Target, limit: int) -> Outside | None:
        rows = await self._connection.fetch(
            """SELECT space_no, kind, ref FROM memory.erasing
               WHERE subject = $1 AND ($2::bigint = 0 OR space_no = $2) AND kind < 4
               ORDER BY space_no, kind, ref LIMIT $3""",
            target.subject, target.space_no, limit,
        )  # fmt: skip
        if not rows:
            return None
        here = [row for row in rows if row["space_no"] == rows[0]["space_no"]]

        def refs(kind: int) -> list[str]:
            return [row["ref"] for row in here if row["kind"] == kind]

        units = tuple(map(int, refs(_UNIT)))
        return Outside(rows[0]["space_no"], units, tuple(map(int, refs(_AROUND))), tuple(refs(_WINDOW)))

    async def forgotten(self, target: Target, after: tuple[int, int], limit: int) -> Outside | None:
        rows = await self._connection.fetch(
            """SELECT DISTINCT o.space_no, o.unit
               FROM memory.outbox o JOIN memory.tombstone t ON t.space_no = o.space_no AND t.unit = o.unit
               WHERE ($1::bigint = 0 OR o.space_no = $1) AND (o.space_no, o.unit) > ($2, $3)
               ORDER BY o.space_no, o.unit LIMIT $4""",
            target.space_no, *after, limit,
        )  # fmt: skip
        if not rows:
            return None
        space_no = rows[0]["space_no"]
        return Outside(space_no, tuple(row["unit"] for row in rows if row["space_no"] == space_no), (), ())

    async def homes(self, space_no: int) -> list[Space]:
        space = await self.space_numbered(space_no)
        beside = await self.generation(space_no) if space else None
        return [form for form in (space, beside.of(space) if space and beside else None) if form]

    async def leased(self, space_no: int, units: Sequence[int]) -> bool:
        return bool(
            await self._connection.fetchval(
                """SELECT EXISTS (SELECT FROM memory.outbox WHERE space_no = $1 AND unit = ANY($2::bigint[])
                                  AND lease IS NOT NULL AND leased_until >= now())
                       OR EXISTS (SELECT FROM memory.rebuild WHERE space_no = $1 AND unit = ANY($2::bigint[])
                                  AND leased_until >= now())""",
                space_no, list(units),
            )
        )  # fmt: skip

    async def settle(self, subject: str, outside: Outside) -> int:
        # By kind, so that the rows are looked up by key however many there are.
        for kind, refs in ((_UNIT, outside.gone), (_AROUND, outside.around), (_WINDOW, outside.windows)):
            await self._connection.execute(
                """DELETE FROM memory.erasing
                   WHERE subject = $1 AND space_no = $2 AND kind = $3 AND ref = ANY($4::text[])""",
                subject, outside.space_no, kind, list(map(str, refs)),
            )  # fmt: skip
        dropped = await self._connection.execute(
            "DELETE FROM memory.outbox WHERE space_no = $1 AND unit = ANY($2::bigint[])",
            outside.space_no, list(outside.gone),
        )  # fmt: skip
        await self.index_again(outside.space_no, outside.around)
        return _count(dropped)

    async def index_again(self, space_no: int, units: Sequence[int]) -> None:
        """Have the indexer make the units' vectors once more. One that it has yet to begin needs no second row."""
        if not units:
            return
        await self._connection.execute(
            """INSERT INTO memory.outbox (space_no, unit, counted)
               SELECT $1, unit, true FROM memory.unit u
               WHERE space_no = $1 AND unit = ANY($2::bigint[]) AND NOT EXISTS (
                   SELECT FROM memory.outbox o WHERE o.space_no = $1 AND o.unit = u.unit AND NOT o.counted)
               ORDER BY unit""",
            space_no, list(units),
        )  # fmt: skip
        await self._connection.execute("SELECT pg_notify($1, '')", CHANNEL)

    async def tally(self, target: Target, removed: Mapping[str, int]) -> None:
        # The sums are made here: only one transaction of a subject's erasures is at it.
        await self._lock_erasing(target.subject)
        sums = Counter(await self._removed(target))
        sums.update(removed)
        await self._connection.execute(
            """INSERT INTO memory.erasure (subject, space_no, removed) VALUES ($1, $2, $3::jsonb)
               ON CONFLICT (tenant, subject, space_no) DO UPDATE SET removed = excluded.removed""",
            target.subject, target.space_no, json.dumps(sums),
        )  # fmt: skip

    async def end_erasure(self, target: Target) -> Mapping[str, int]:
        await self._lock_erasing(target.subject)
        removed = await self._removed(target)
        for table in ("erasing", "erasure"):
            await self._connection.execute(
                f"DELETE FROM memory.{table} WHERE subject = $1 AND ($2::bigint = 0 OR space_no = $2)",  # noqa: S608 - constants
                target.subject, target.space_no,
            )  # fmt: skip
        return removed

    async def unfinished_erasures(self, older_than_s: float) -> list[Target]:
        rows = await self._connection.fetch(
            """SELECT subject, space_no FROM memory.erasure
               WHERE started_at < now() - make_interval(secs => $1::double precision)
               ORDER BY subject, space_no LIMIT 100""",
            older_than_s,
        )
        return [Target(row["subject"], row["space_no"]) for row in rows]

    async def tombstones(self, space_no: int, units: Sequence[int]) -> list[int]:
        rows = await self._connection.fetch(
            "SELECT unit FROM memory.tombstone WHERE space_no = $1 AND unit = ANY($2::bigint[])", space_no, list(units)
        )
        return [row["unit"] for row in rows]

    async def receipt_seed(self, fresh: bytes) -> bytes:
        await self._connection.execute(
            "INSERT INTO memory.receipt_key (seed) VALUES ($1) ON CONFLICT DO NOTHING", fresh
        )
        return bytes(await self._connection.fetchval("SELECT seed FROM memory.receipt_key"))

    async def _lock_erasing(self, subject: str) -> None:
        await self._connection.execute(
            """SELECT pg_advisory_xact_lock(hashtextextended(
                   'janus.memory.erase:' || current_setting('janus.tenant') || ':' || $1, 0))""",
            subject,
        )

    async def _removed(self, target: Target) -> dict[str, int]:
        text = await self._connection.fetchval(
            "SELECT removed FROM memory.erasure WHERE subject = $1 AND space_no = $2", target.subject, target.space_no
        )
        found: dict[str, int] = json.loads(text or "{}")
        return found

    async def _erase_records(self, subject: str, space_no: int, limit: int) -> Mapping[str, int]:
        fetch = self._connection.fetch
        turns = await fetch(
            f"""SELECT thread, position, id, session FROM memory.turn WHERE {_ITS}
                ORDER BY thread, position LIMIT $3""",  # noqa: S608 - constants
            subject, space_no, limit,
        )  # fmt: skip
        threads = list(dict.fromkeys(turn["thread"] for turn in turns))
        heads = await fetch(
            """SELECT id, incarnation FROM memory.thread
               WHERE space_no = $1 AND id = ANY($2::text[]) ORDER BY id FOR UPDATE""",
            space_no, threads,
        )  # fmt: skip
        memories = await fetch(
            f"SELECT id, version FROM memory.memory WHERE {_ITS} ORDER BY id, version LIMIT $3 FOR UPDATE",  # noqa: S608 - constants
            subject, space_no, limit,
        )  # fmt: skip
        rows = await fetch(
            f"SELECT unit FROM memory.unit WHERE {_ITS} ORDER BY unit LIMIT $3 FOR UPDATE",  # noqa: S608 - constants
            subject, space_no, limit,
        )  # fmt: skip
        units = [row["unit"] for row in rows]
        around = await self._around(subject, space_no, turns)
        removed = Counter(await self._erase_units(space_no, units))
        removed["postgres.turn"] = _count(
            await self._connection.execute(
                """DELETE FROM memory.turn t USING unnest($2::text[], $3::bigint[]) AS e (thread, position)
                   WHERE t.space_no = $1 AND t.thread = e.thread AND t.position = e.position AND t.subject = $4""",
                space_no,
                [turn["thread"] for turn in turns],
                [turn["position"] for turn in turns],
                subject,
            )
        )
        removed["postgres.thread"] = await self._new_incarnations(space_no, turns)
        removed["postgres.memory"] = _count(
            await self._connection.execute(
                """DELETE FROM memory.memory m USING unnest($1::text[], $2::bigint[]) AS e (id, version)
                   WHERE m.id = e.id AND m.version = e.version""",
                [memory["id"] for memory in memories],
                [memory["version"] for memory in memories],
            )
        )
        work = [
            *((_UNIT, str(unit)) for unit in units),
            *((_AROUND, str(unit)) for unit in around),
            *((_WINDOW, head["incarnation"].hex) for head in heads),
            *((_SOURCE, f"{turn['thread']} {turn['id']}") for turn in turns),
            *((_SOURCE, f" {memory['id']}") for memory in memories),
        ]
        await self._connection.execute(
            """INSERT INTO memory.erasing (subject, space_no, kind, ref)
               SELECT $1, $2, kind, ref FROM unnest($3::smallint[], $4::text[]) AS w (kind, ref)
               ON CONFLICT DO NOTHING""",
            subject, space_no, [kind for kind, _ in work], [ref for _, ref in work],
        )  # fmt: skip
        return removed

    async def _around(self, subject: str, space_no: int, turns: Sequence[Any]) -> list[int]:
        """Units of others that were embedded together with one of the turns."""
        rows = await self._connection.fetch(
            f"""SELECT DISTINCT u.unit
                FROM unnest($3::text[], $4::bigint[], $5::integer[]) AS e (thread, position, session)
                CROSS JOIN LATERAL (
                    SELECT unit FROM memory.unit
                    WHERE space_no = $2 AND kind = 1 AND thread = e.thread
                      AND position BETWEEN e.position + 1 AND e.position + {REACH_BEFORE}
                      AND session = e.session AND subject <> $1
                    OFFSET 0) AS u""",  # noqa: S608 - a constant
            subject, space_no, [turn["thread"] for turn in turns], [turn["position"] for turn in turns],
            [turn["session"] for turn in turns],
        )  # fmt: skip
        return [row["unit"] for row in rows]

    async def _erase_units(self, space_no: int, units: Sequence[int]) -> Mapping[str, int]:
        """Remove units with their vectors, statistics and outbox rows, and leave tombstones."""
        if not units:
            return {}
        retired = await self._connection.fetch(
            "SELECT unit FROM memory.unit WHERE space_no = $1 AND unit = ANY($2::bigint[]) AND retired",
            space_no, list(units),
        )  # fmt: skip
        await self._uncount(space_no, sorted({*units} - {row["unit"] for row in retired}))
        await self._connection.execute(
            """INSERT INTO memory.tombstone (space_no, unit) SELECT $1, unnest($2::bigint[]) ON CONFLICT DO NOTHING""",
            space_no, units,
        )  # fmt: skip
        return {
            store: _count(
                await self._connection.execute(
                    f"DELETE FROM memory.{table} WHERE space_no = $1 AND unit = ANY($2::bigint[]){condition}",  # noqa: S608 - constants
                    space_no,
                    units,
                )
            )
            for store, table, condition in (
                ("postgres.vector", "vector", _EVERY_FORM),
                ("postgres.unit", "unit", ""),
                # Rows of an indexer at work tell that it may yet put vectors in place.
                ("postgres.outbox", "outbox", " AND (lease IS NULL OR leased_until < now())"),
            )
        }

    async def _new_incarnations(self, space_no: int, turns: Sequence[Any]) -> int:
        """Threads that lost turns begin new windows; empty ones go. How many went."""
        lost = Counter(turn["thread"] for turn in turns)
        await self._connection.execute(
            """UPDATE memory.thread t SET incarnation = gen_random_uuid(), removed = t.removed + lost.turns
               FROM unnest($2::text[], $3::bigint[]) AS lost (thread, turns)
               WHERE t.space_no = $1 AND t.id = lost.thread""",
            space_no, list(lost), list(lost.values()),
        )  # fmt: skip
        return _count(
            await self._connection.execute(
                """DELETE FROM memory.thread t
                   WHERE t.space_no = $1 AND t.id = ANY($2::text[]) AND NOT EXISTS (
                       SELECT FROM memory.turn WHERE space_no = $1 AND thread = t.id)""",
                space_no,
                list(lost),
            )
        )


def _count(status: str) -> int:
    """Rows of a command, by its tag."""
    return int(status.split()[-1])
