"""BM25 over windows of turns, computed from bags of hashed terms.

A window of a turn is its own line with neighbours of the same session, under
the session's date. Windows are never stored: term counts and lengths of a
window are sums over its lines, so the numbers are exact at any moment.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
"""Windows by name: turns before and after. None is narrower than the one before it."""

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
    neighbours: "Mapping[int, tuple[NDArray[np.int64], NDArray[np.int64]]]"


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
    found: dict[str, NDArray[np.float64]] = {}
    for name, (counts, lengths) in _windows(pool):
        # How much more often a term is in a window than in a line is measured on
        # the candidates; the frequency in lines is the whole space's.
        spread = (counts > 0).sum(axis=0) / own_found
        in_windows = np.minimum(frequencies * spread, units)
        idf = np.log(1 + (units - in_windows + 0.5) / (in_windows + 0.5))
        expected = max(mean_length * float(lengths.mean()) / max(float(own_lengths.mean()), 1e-9), 1e-9)
        norm = K1 * (1 - B + B * lengths / expected)
        found[name] = (idf * counts * (K1 + 1) / (counts + norm[:, None])).sum(axis=1)
        if not pool.neighbours:
            # Where nobody has a neighbour, a window is the line alone, whatever its reach.
            return dict.fromkeys(WINDOWS, found[name])
    return found


def _pool(candidates: Columns, query: Sequence[str]) -> Pool:
    import numpy as np

    size = len(candidates)
    ends = np.cumsum(candidates.lengths)
    counts = np.zeros((size, len(query)))
    for column, hashed in enumerate(np.frombuffer(b"".join(map(term_hash, query)), "<u4")):
        owners = np.searchsorted(ends, np.flatnonzero(candidates.hashes == hashed), side="right")
        counts[:, column] = np.bincount(owners, minlength=size)
    dated = np.zeros((size, len(query)))
    columns = {term: column for column, term in enumerate(query) if may_be_date(term)}
    if columns:
        for row in np.flatnonzero(candidates.turns).tolist():
            for term in date_terms(candidates.occurred_at[row].item()):
                if term in columns:
                    dated[row, columns[term]] += 1
    date_lengths = np.where(candidates.turns, float(DATE_TERMS), 0.0)
    return Pool(counts, candidates.lengths.astype(float), dated, date_lengths, _neighbours(candidates))


def _neighbours(candidates: Columns) -> "dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]]":
    """By distance in positions: the lines that have a line there, and which it is."""
    import numpy as np

    turns = np.flatnonzero(candidates.turns)
    if not len(turns):
        return {}
    # Keys that put a session's turns in a row, far from those of any other.
    keys = (candidates.sessions[turns] << 40) + candidates.positions[turns]
    order = np.argsort(keys)
    keys, lines = keys[order], turns[order]
    found = {}
    for distance in range(1, REACH + 1):
        # Whoever is that far apart has at most so many turns less one between them.
        pairs = [(np.flatnonzero(keys[step:] - keys[:-step] == distance), step) for step in range(1, distance + 1)]
        earlier = np.concatenate([lines[place] for place, _ in pairs])
        later = np.concatenate([lines[place + step] for place, step in pairs])
        found[distance], found[-distance] = (earlier, later), (later, earlier)
    return found


def _windows(pool: Pool) -> "Iterator[tuple[str, tuple[NDArray[np.float64], NDArray[np.float64]]]]":
    """By name, term counts and lengths of the window around every line; its date counts once.

    Each window is the one before it and some more: what is given changes with the next.
    """
    counts = pool.counts + pool.dated
    lengths = pool.lengths + pool.date_lengths
    before, after = 0, 0
    for name, (first, last) in WINDOWS.items():
        for offset in (*range(-first, -before), *range(after + 1, last + 1)):
            here, neighbour = pool.neighbours[offset]
            counts[here] += pool.counts[neighbour]
            lengths[here] += pool.lengths[neighbour]
        before, after = first, last
        yield name, (counts, lengths)
