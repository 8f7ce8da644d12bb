"""Candidates of a recall one by one, as tests write them down."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np

from janus_memory.columns import Columns, joined
from janus_memory.model import Kind


class Candidate(NamedTuple):
    """A unit as recall scores it. ``bag`` is its own line, without the session's date."""

    unit: int
    kind: Kind
    thread: str
    position: int
    session: int
    speaker: str
    occurred_at: datetime
    importance: float
    bag: bytes


def columns(candidates: Sequence[Candidate]) -> Columns:
    """All of them, in their order."""
    return joined(map(_alone, candidates))


def _alone(each: Candidate) -> Columns:
    when = np.datetime64(each.occurred_at.replace(tzinfo=None), "us")
    return Columns(
        units=np.array([each.unit]),
        turns=np.array([each.kind is Kind.TURN]),
        threads=[each.thread],
        positions=np.array([each.position]),
        numbers=np.array([each.session]),
        speakers=[each.speaker],
        occurred_at=np.array([when]),
        importance=np.array([each.importance]),
        lengths=np.array([len(each.bag) // 4]),
        hashes=np.frombuffer(each.bag, "<u4"),
    )
