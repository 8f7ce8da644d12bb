"""BM25 over windows of turns, computed from bags of hashed terms.

A window of a turn is its own line with neighbours of the same session, under
the session's date. Windows are never stored: term counts and lengths of a
window are sums over its lines, so the numbers are exact at any moment.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from janus_memory.columns import Columns
from janus_memory.model import Lexicon
from janus_memory.text import DATE_TERMS, date_terms, may_be_date, term_hash

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

K1 = 1.2
B = 0.75

WINDOWS: Mapping[str, tuple[int, int]] = {
    "lexical_turn": (0, 0),
    "lexical_before": (1, 0),
    "lexical_around": (2, 1),
    "lexical_wide": (3, 3),
}
"""Windows by name: turns before and after."""

REACH = max(max(window) for window in WINDOWS.values())
"""How far away a turn can be and still be in a window, in positions."""


@dataclass(frozen=True)
class Pool:
    """Candidates as arrays: ``counts[i, t]`` of query term t in line i, ``lengths[i]``.

    ``dated`` and ``date_lengths`` are the same of the session's date.
    """

    counts: "NDArray[np.float64]"
    lengths: "NDArray[np.float64]"
    dated: "NDArray[np.float64]"
    date_lengths: "NDArray[np.float64]"
    neighbours: "dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]]"


def scores(candidates: Columns, query: Sequence[str], lexicon: Lexicon) -> "dict[str, NDArray[np.float64]]":
    """BM25 of every candidate, one array a window, in the candidates' order.

    ``query`` are distinct terms. Zero where no line of the window has one.
    """
    import numpy as np

    if not len(candidates) or not query:
        return {name: np.zeros(len(candidates)) for name in WINDOWS}
    pool = _pool(candidates, query)
    alone = (pool.counts + pool.dated) > 0
    own_found = np.maximum(alone.sum(axis=0), 1)
    # The statistics lag behind the records by the indexer's backlog; what was
    # found is a lower bound of what there is.
    units = max(lexicon.units, len(candidates))
    frequencies = np.maximum([lexicon.frequencies.get(term, 0) for term in query], alone.sum(axis=0))
    own_lengths = pool.lengths + pool.date_lengths
    mean_length = lexicon.tokens / lexicon.units if lexicon.units else float(own_lengths.mean())
    found: dict[str, Any] = {}
    for name, (before, after) in WINDOWS.items():
        counts, lengths = _window(pool, before, after)
        # How much more often a term is in a window than in a line is measured on
        # the candidates; the frequency in lines is the whole space's.
        spread = (counts > 0).sum(axis=0) / own_found
        in_windows = np.minimum(frequencies * spread, units)
        idf = np.log(1 + (units - in_windows + 0.5) / (in_windows + 0.5))
        expected = max(mean_length * float(lengths.mean()) / max(float(own_lengths.mean()), 1e-9), 1e-9)
        norm = K1 * (1 - B + B * lengths / expected)
        found[name] = (idf * counts * (K1 + 1) / (counts + norm[:, None])).sum(axis=1)
    return found


def _pool(candidates: Columns, query: Sequence[str]) -> Pool:
    import numpy as np

    size = len(candidates)
    lengths = np.fromiter(map(len, candidates.bags), np.int64, size) // 4
    hashes = np.frombuffer(b"".join(candidates.bags), np.uint32)
    wanted = np.frombuffer(b"".join(map(term_hash, query)), np.uint32)
    owner = np.repeat(np.arange(size), lengths)
    asked = np.isin(hashes, wanted)
    hashes, owner = hashes[asked], owner[asked]
    counts = np.zeros((size, len(query)))
    for column, hashed in enumerate(wanted):
        counts[:, column] = np.bincount(owner[hashes == hashed], minlength=size)
    dated = np.zeros((size, len(query)))
    columns = {term: column for column, term in enumerate(query) if may_be_date(term)}
    if columns:
        for row in np.flatnonzero(candidates.turns).tolist():
            for term in date_terms(candidates.occurred_at[row]):
                if term in columns:
                    dated[row, columns[term]] += 1
    # Sorting keys put a session's turns in a row, far from those of any other.
    keys = (candidates.sessions << 40) + np.where(candidates.turns, candidates.positions, 0)
    return Pool(
        counts, lengths.astype(float), dated, np.where(candidates.turns, float(DATE_TERMS), 0.0), _neighbours(keys)
    )


def _neighbours(keys: "NDArray[np.int64]") -> "dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]]":
    """By distance in positions: the lines that have a line there, and which it is."""
    import numpy as np

    order = np.argsort(keys)
    ordered = keys[order]
    found = {}
    for offset in range(-REACH, REACH + 1):
        place = np.minimum(np.searchsorted(ordered, keys + offset), len(ordered) - 1)
        here = np.flatnonzero(ordered[place] == keys + offset)
        found[offset] = (here, order[place[here]])
    return found


def _window(pool: Pool, before: int, after: int) -> "tuple[NDArray[np.float64], NDArray[np.float64]]":
    """Term counts and lengths of the window around every line; its date counts once."""
    counts = pool.counts + pool.dated
    lengths = pool.lengths + pool.date_lengths
    for offset in (*range(-before, 0), *range(1, after + 1)):
        here, neighbour = pool.neighbours[offset]
        counts[here] += pool.counts[neighbour]
        lengths[here] += pool.lengths[neighbour]
    return counts, lengths
