"""What a vector index holds, compared with the records; and vectors with each other."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from janus_memory.model import Indexed, Space, View
from janus_memory.ports import VectorIndex
from janus_memory.reconciliation import Entry, Expected

# Times of some indexes are floating-point seconds.
_EXACT_S = 0.001
_ANY = datetime(1970, 1, 1, tzinfo=UTC)


async def different(tenant: str, space: Space, index: VectorIndex, page: Sequence[Expected]) -> dict[int, bool]:
    """Units that some view holds otherwise than expected, and whether it lacks them."""
    right = {each.entry.about.unit: each.entry for each in page if not each.waiting}
    found: dict[int, bool] = {}
    for view in View:
        held: dict[int, list[Entry]] = {unit: [] for unit in right}
        for entry in await index.entries(tenant, space, view, list(right)):
            held[entry.about.unit].append(entry)
        for unit, entries in held.items():
            if not entries:
                found.setdefault(unit, True)
            elif len(entries) > 1 or not _same(entries[0], right[unit]):
                found[unit] = False
    return found


def _same(left: Entry, right: Entry) -> bool:
    return (
        left.version == right.version
        and _timeless(left.about) == _timeless(right.about)
        and all(map(_close, _times(left.about), _times(right.about)))
    )


def _timeless(about: Indexed) -> Indexed:
    return replace(about, recorded_at=_ANY, valid_from=None, valid_to=None, expires_at=None, superseded_at=None)


def _times(about: Indexed) -> tuple[datetime | None, ...]:
    return about.recorded_at, about.valid_from, about.valid_to, about.expires_at, about.superseded_at


def _close(left: datetime | None, right: datetime | None) -> bool:
    if left is None or right is None:
        return left is right
    return abs((left - right).total_seconds()) <= _EXACT_S


def cosine(left: Sequence[float], right: Sequence[float]) -> float:
    """Cosine similarity; 0 when one of them is zero."""
    norms = sum(a * a for a in left) ** 0.5 * sum(b * b for b in right) ** 0.5
    return sum(a * b for a, b in zip(left, right, strict=True)) / norms if norms else 0.0
