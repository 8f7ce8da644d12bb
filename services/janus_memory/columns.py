"""Candidates as columns: what is computed of all of them at once."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from janus_memory.model import Candidate, Kind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Columns:
    """The fields of candidates, in the candidates' order.

    ``sessions`` numbers every candidate's session from 0; a memory is a session
    of its own. ``turns`` says who is a turn.
    """

    units: "NDArray[np.int64]"
    turns: "NDArray[np.bool_]"
    positions: "NDArray[np.int64]"
    sessions: "NDArray[np.int64]"
    speakers: Sequence[str]
    occurred_at: Sequence[datetime]
    importance: "NDArray[np.float64]"
    bags: Sequence[bytes]

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        import numpy as np

        fields: list[tuple] = list(zip(*candidates, strict=True)) or [()] * len(Candidate._fields)  # type: ignore[type-arg]  # one of every type
        units, kinds, threads, positions, sessions, self.speakers, self.occurred_at, importance, self.bags = fields
        self.units = np.array(units, np.int64)
        self.turns = np.array(kinds, np.int64) == int(Kind.TURN)
        self.positions = np.array(positions, np.int64)
        self.importance = np.array(importance, float)
        numbers = {thread: number for number, thread in enumerate(dict.fromkeys(threads))}
        within = np.fromiter(map(numbers.__getitem__, threads), np.int64, len(threads)) << 32
        keys = np.where(self.turns, within + np.array(sessions, np.int64), -1 - self.units)
        self.sessions = np.unique(keys, return_inverse=True)[1]

    def __len__(self) -> int:
        return len(self.units)
