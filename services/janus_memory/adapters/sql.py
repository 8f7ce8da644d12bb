"""Fragments of SQL that several statements share. Values are always bound parameters.

Rows that are looked up by their keys, for each of some other rows, stand in a LATERAL with OFFSET 0
throughout. As a plain join they would be planned by how many rows the tenant is expected to have, and
of a tenant that is newer than the statistics that is one, whatever it has: all its rows were read then
for each of the others.
"""

from collections.abc import Sequence
from typing import Any

from janus_memory.adapters.sql_filter import filtered
from janus_memory.model import Cause, Change, HardFilter, Indexed, Kind, Memory, MemoryVersion, Scope, Turn


class Bound:
    """Parameters of a statement under construction; calling it gives a placeholder."""

    def __init__(self, *values: Any) -> None:
        self.values = list(values)

    def __call__(self, value: Any) -> str:
        self.values.append(value)
        return f"${len(self.values)}"


def rows_of(bound: Bound, **columns: tuple[str, Sequence[Any]]) -> str:
    """Columns of equal length, each with its SQL type, as rows `r` of a FROM: one statement for many rows."""
    arrays = ", ".join(f"{bound(values)}::{kind}[]" for kind, values in columns.values())
    return f"unnest({arrays}) AS r ({', '.join(columns)})"


def integers(values: Sequence[int]) -> str:
    """A value for `$n::text::bigint[]`. Of a list, the driver asks each element whether it is one itself."""
    return f"{{{','.join(map(str, values))}}}"


def allowed(where: HardFilter, bound: Bound, alias: str = "") -> str:
    """Conditions of a hard filter, each with AND before it; for units and, without its typed filter, for vectors.


    ``alias`` is the table's in the statement, if it has one that must be said.
    Conditions that nobody asked for are left out, so that a scan does not pay
    for them; there are few enough variants for the statement cache.
    """
    of = f"{alias}." if alias else ""
    conditions = []
    for column, value in (
        ("subject", where.scope.subject),
        ("agent", where.scope.agent),
        ("thread", where.scope.thread),
    ):
        if value:
            conditions.append(f"{of}{column} = {bound(value)}")
    if where.kinds:
        conditions.append(f"{of}kind = ANY({bound([int(kind) for kind in where.kinds])}::smallint[])")
    if not where.whenever:
        at = bound(where.valid_at)
        conditions.append(f"({of}valid_from IS NULL OR {of}valid_from <= {at}::timestamptz)")
        conditions.append(f"({of}valid_to IS NULL OR {of}valid_to > {at}::timestamptz)")
    if not where.inactive:
        conditions.append(f"({of}expires_at IS NULL OR {of}expires_at > {bound(where.now)}::timestamptz)")
    if where.recorded_at is not None:
        known = bound(where.recorded_at)
        conditions.append(f"{of}recorded_at <= {known}::timestamptz")
        if not where.inactive:
            conditions.append(f"({of}superseded_at IS NULL OR {of}superseded_at > {known}::timestamptz)")
    elif not where.inactive:
        conditions.append(f"{of}superseded_at IS NULL")
    if where.filter is not None:
        # One more condition among those above: whatever it says, it only narrows.
        conditions.append(filtered(where.filter, bound, of))
    return "".join(f" AND {condition}" for condition in conditions)


TURN_COLUMNS = (
    "t.id, t.subject, t.agent, t.thread, t.speaker, t.text, t.content, t.tokens, t.calls, t.results,"
    " t.position, t.session, t.occurred_at, t.recorded_at, t.metadata_json"
)
MEMORY_COLUMNS = (
    "m.id, m.version, m.kind, m.text, m.subject, m.agent, m.thread, m.predicate, m.provenance_json,"
    " m.valid_from, m.valid_to, m.expires_at, m.importance, m.metadata_json, m.recorded_at, m.superseded_at"
)

INDEXED_COLUMNS = "unit, kind, subject, agent, thread, recorded_at, valid_from, valid_to, expires_at, superseded_at"


def indexed_of(row: Any) -> Indexed:
    """A row of INDEXED_COLUMNS, of units or of vectors."""
    return Indexed(
        unit=row["unit"],
        kind=Kind(row["kind"]),
        subject=row["subject"],
        agent=row["agent"],
        thread=row["thread"],
        recorded_at=row["recorded_at"],
        valid_from=row["valid_from"],
        valid_to=row["valid_to"],
        expires_at=row["expires_at"],
        superseded_at=row["superseded_at"],
    )


VERSION_COLUMNS = f"{MEMORY_COLUMNS}, m.change, m.changed_by, m.message_id, m.reason, m.purged"


def turn_of(row: Any, space: str) -> Turn:
    """A row of TURN_COLUMNS as a turn."""
    return Turn(
        id=row["id"],
        scope=Scope(space, row["subject"], row["agent"], row["thread"]),
        speaker=row["speaker"],
        text=row["text"],
        content=row["content"],
        tokens=row["tokens"],
        calls=tuple(row["calls"]),
        results=tuple(row["results"]),
        position=row["position"],
        session=row["session"],
        occurred_at=row["occurred_at"],
        recorded_at=row["recorded_at"],
        metadata_json=row["metadata_json"],
    )


def memory_of(row: Any, space: str) -> Memory:
    """A row of MEMORY_COLUMNS as a memory."""
    return Memory(
        id=row["id"],
        version=row["version"],
        kind=Kind(row["kind"]),
        text=row["text"],
        scope=Scope(space, row["subject"], row["agent"], row["thread"]),
        predicate=row["predicate"],
        provenance_json=row["provenance_json"],
        valid_from=row["valid_from"],
        valid_to=row["valid_to"],
        expires_at=row["expires_at"],
        importance=row["importance"],
        metadata_json=row["metadata_json"],
        recorded_at=row["recorded_at"],
        superseded_at=row["superseded_at"],
    )


def version_of(row: Any, space: str) -> MemoryVersion:
    """A row of VERSION_COLUMNS as a version."""
    cause = Cause(row["changed_by"], row["message_id"], row["reason"])
    return MemoryVersion(memory_of(row, space), Change(row["change"]), cause, row["purged"])


def quoted(lexemes: Sequence[str]) -> str:
    """A tsquery that any of the lexemes satisfies."""
    return " | ".join("'" + lexeme.replace("\\", "\\\\").replace("'", "''") + "'" for lexeme in lexemes)
