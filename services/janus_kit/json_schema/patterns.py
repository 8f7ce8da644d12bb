"""Regular expressions of users, matched in linear time.

A backtracking engine takes exponential time on patterns such as ``(a+)+$``.
Here a pattern becomes an automaton whose states are followed all at once, so
that the work is at most its size times the text's, and that is bounded too.
A pattern that no automaton can match, or one that is too large, is not decided.
"""

from dataclasses import dataclass, field
from functools import lru_cache

from janus_kit.json_schema.pattern_syntax import (
    CharSet,
    Choice,
    Edge,
    Node,
    Ranges,
    Repeat,
    Sequence,
    Undecided,
    parsed,
)

__all__ = ["MAX_PATTERN", "Undecided", "search"]

MAX_PATTERN = 512
"""Characters."""
_MAX_STATES = 2_000


def search(pattern: str, text: str, most_steps: int) -> tuple[bool, int]:
    """Whether the pattern is found in the text, and the steps that took. Raises Undecided."""
    machine = _compiled(pattern)
    seen = 0
    current: set[int] = set()
    for position in range(len(text) + 1):
        follow = [*current, machine.start]
        current = set()
        closed: set[int] = set()
        while follow:
            state = follow.pop()
            if state in closed:
                continue
            closed.add(state)
            if state == machine.end:
                return True, seen
            for edge, target in machine.free[state]:
                if edge is None or position == (len(text) if edge.at_end else 0):
                    follow.append(target)
        seen += len(closed)
        if seen > most_steps:
            raise Undecided
        if position < len(text):
            code = ord(text[position])
            current = {machine.steps[state][1] for state in closed if _takes(machine.steps.get(state), code)}
    return False, seen


def _takes(step: tuple[Ranges, int] | None, code: int) -> bool:
    return step is not None and any(first <= code <= last for first, last in step[0])


@dataclass
class _Machine:
    """``free`` are moves that take no character, some only at an edge of the text; ``steps`` take one."""

    start: int = 0
    end: int = 0
    free: list[list[tuple[Edge | None, int]]] = field(default_factory=list)
    steps: dict[int, tuple[Ranges, int]] = field(default_factory=dict)

    def state(self) -> int:
        if len(self.free) >= _MAX_STATES:
            raise Undecided
        self.free.append([])
        return len(self.free) - 1

    def build(self, node: Node, after: int) -> int:
        """The state from which the node leads to ``after``."""
        match node:
            case CharSet(ranges):
                here = self.state()
                self.steps[here] = (ranges, after)
                return here
            case Edge():
                here = self.state()
                self.free[here].append((node, after))
                return here
            case Sequence(nodes):
                for each in reversed(nodes):
                    after = self.build(each, after)
                return after
            case Choice(nodes):
                here = self.state()
                self.free[here] += [(None, self.build(each, after)) for each in nodes]
                return here
        return self._repeat(node, after)

    def _repeat(self, node: Repeat, after: int) -> int:
        if node.most is None:
            loop = self.state()
            self.free[loop] += [(None, after), (None, self.build(node.node, loop))]
            after = loop
        else:
            done = after
            for _ in range(node.most - node.least):
                here = self.state()
                self.free[here] += [(None, done), (None, self.build(node.node, after))]
                after = here
        for _ in range(node.least):
            after = self.build(node.node, after)
        return after


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> _Machine:
    if len(pattern) > MAX_PATTERN:
        raise Undecided
    machine = _Machine()
    machine.end = machine.state()
    try:
        machine.start = machine.build(parsed(pattern), machine.end)
    except RecursionError:
        raise Undecided from None
    return machine
