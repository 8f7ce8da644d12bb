"""The statistics of BM25 as they must be: counted anew from the units."""

from __future__ import annotations

from typing import Any

# What is current and was not left to the indexer.
COUNTED = """tenant = $1 AND NOT retired AND NOT EXISTS (
    SELECT FROM memory.outbox o WHERE o.tenant = u.tenant AND o.space_no = u.space_no AND o.unit = u.unit
                                  AND NOT o.counted)"""
# What is current by its own times.
CURRENT = "tenant = $1 AND superseded_at IS NULL AND (expires_at IS NULL OR expires_at > now())"


async def kept(owner: Any, tenant: str) -> tuple[dict[Any, int], list[tuple[int, int, int]]]:
    """Units by space and term, and (space, units, tokens), as they are kept."""
    terms = await owner.fetch("SELECT space_no, term, units FROM memory.lexicon WHERE tenant = $1", tenant)
    totals = await owner.fetch(
        "SELECT space_no, units, tokens FROM memory.statistics WHERE tenant = $1 AND units <> 0 ORDER BY 1", tenant
    )
    return {(row["space_no"], row["term"]): row["units"] for row in terms}, [tuple(row) for row in totals]


async def counted(owner: Any, tenant: str, condition: str) -> tuple[dict[Any, int], list[tuple[int, int, int]]]:
    """The same, counted from the units that satisfy a condition."""
    terms = await owner.fetch(
        f"""SELECT space_no, split_part(lexeme, ':', 2) AS term, count(*) AS units
            FROM memory.unit u, unnest(tsvector_to_array(terms)) AS lexeme WHERE {condition} GROUP BY 1, 2""",
        tenant,
    )
    totals = await owner.fetch(
        f"""SELECT space_no, count(*),
                   sum(octet_length(bag) / 4 + CASE kind WHEN 1 THEN 3 ELSE 0 END)::bigint
            FROM memory.unit u WHERE {condition} GROUP BY 1 ORDER BY 1""",
        tenant,
    )
    return {(row["space_no"], row["term"]): row["units"] for row in terms}, [tuple(row) for row in totals]
