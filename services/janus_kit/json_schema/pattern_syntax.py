"""Users' regular expressions as trees.

The language is that of JSON Schema (ECMA-262) without what no automaton has:
look-around, references back, word boundaries.
"""

from typing import NamedTuple

_MAX_REPEAT = 1_000
_LAST = 0x10FFFF

Ranges = tuple[tuple[int, int], ...]
_DIGIT: Ranges = ((48, 57),)
_WORD: Ranges = ((48, 57), (65, 90), (95, 95), (97, 122))
_SPACE: Ranges = ((9, 13), (32, 32), (0xA0, 0xA0), (0x2028, 0x2029), (0xFEFF, 0xFEFF))
_CLASSES = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}
_LINE_ENDS: Ranges = ((10, 10), (13, 13), (0x2028, 0x2029))


class Undecided(Exception):
    """The pattern is not one that this engine knows, or matching it is too much work."""


class CharSet(NamedTuple):
    ranges: Ranges


class Sequence(NamedTuple):
    nodes: tuple["Node", ...]


class Choice(NamedTuple):
    nodes: tuple["Node", ...]


class Repeat(NamedTuple):
    node: "Node"
    least: int
    most: int | None


class Edge(NamedTuple):
    at_end: bool


Node = CharSet | Sequence | Choice | Repeat | Edge


def parsed(pattern: str) -> Node:
    """The pattern as a tree. Raises Undecided for what is not of the language, or not of this one."""
    try:
        return _Parser(pattern).whole()
    except (IndexError, ValueError, RecursionError):
        raise Undecided from None


def is_broken(pattern: object) -> bool:
    """Whether no engine could read it: brackets without their other half, or a backslash with nothing after it.

    What this language does not know, another may; it is not decided, see ``parsed``.
    """
    if not isinstance(pattern, str):
        return True
    groups, in_class, chars = 0, False, iter(pattern)
    for char in chars:
        if char == "\\":
            if not next(chars, ""):
                return True
        elif in_class:
            in_class = char != "]"
        elif char == "[":
            in_class = True
        elif char in "()":
            groups += 1 if char == "(" else -1
            if groups < 0:
                return True
    return in_class or groups > 0


class _Parser:
    """Reads a pattern. Raises Undecided, IndexError or ValueError for what it does not know."""

    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0

    def whole(self) -> Node:
        node = self._alternatives()
        if self._at != len(self._text):
            raise Undecided
        return node

    def _peek(self) -> str:
        return self._text[self._at] if self._at < len(self._text) else ""

    def _take(self) -> str:
        self._at += 1
        return self._text[self._at - 1]

    def _alternatives(self) -> Node:
        found = [self._sequence()]
        while self._peek() == "|":
            self._take()
            found.append(self._sequence())
        return found[0] if len(found) == 1 else Choice(tuple(found))

    def _sequence(self) -> Node:
        nodes: list[Node] = []
        while self._peek() not in ("", "|", ")"):
            nodes.append(self._quantified(self._atom()))
        return Sequence(tuple(nodes))

    def _quantified(self, node: Node) -> Node:
        most: int | None = None
        match self._peek():
            case "*":
                least = 0
            case "+":
                least = 1
            case "?":
                least, most = 0, 1
            case "{":
                return self._counted(node)
            case _:
                return node
        self._take()
        return self._lazy(Repeat(node, least, most))

    def _counted(self, node: Node) -> Node:
        self._take()
        end = self._text.index("}", self._at)
        low, comma, high = self._text[self._at : end].partition(",")
        self._at = end + 1
        least = int(low)
        most = least if not comma else int(high) if high else None
        if least > _MAX_REPEAT or (most is not None and not least <= most <= _MAX_REPEAT):
            raise Undecided
        return self._lazy(Repeat(node, least, most))

    def _lazy(self, node: Node) -> Node:
        """Lazy or greedy, the same texts are found."""
        if self._peek() == "?":
            self._take()
        if self._peek() in ("*", "+", "{"):
            raise Undecided
        return node

    def _atom(self) -> Node:
        match self._take():
            case "(":
                return self._group()
            case "[":
                return CharSet(self._class())
            case ".":
                return CharSet(_inverse(_LINE_ENDS))
            case "^":
                return Edge(at_end=False)
            case "$":
                return Edge(at_end=True)
            case "\\":
                return CharSet(self._escape())
            case "*" | "+" | "?" | "{":
                raise Undecided
            case char:
                return CharSet(((ord(char), ord(char)),))

    def _group(self) -> Node:
        if self._peek() == "?":
            self._take()
            kind = self._take()
            if kind == "<" and self._peek() not in ("=", "!"):
                self._at = self._text.index(">", self._at) + 1
            elif kind != ":":
                raise Undecided
        node = self._alternatives()
        if self._take() != ")":
            raise Undecided
        return node

    def _class(self) -> Ranges:
        negated = self._peek() == "^"
        if negated:
            self._take()
        ranges: list[tuple[int, int]] = []
        while (char := self._take()) != "]":
            first = self._escape(in_class=True) if char == "\\" else ((ord(char), ord(char)),)
            is_range = self._peek() == "-" and self._text[self._at + 1] != "]" and len(first) == 1
            if is_range and first[0][0] == first[0][1]:
                self._take()
                char = self._take()
                last = self._escape(in_class=True) if char == "\\" else ((ord(char), ord(char)),)
                if len(last) != 1 or last[0][0] != last[0][1] or last[0][0] < first[0][0]:
                    raise Undecided
                ranges.append((first[0][0], last[0][0]))
            else:
                ranges += first
        return _inverse(tuple(ranges)) if negated else tuple(ranges)

    def _escape(self, *, in_class: bool = False) -> Ranges:
        char = self._take()
        if char.lower() in _CLASSES:
            ranges = _CLASSES[char.lower()]
            return _inverse(ranges) if char.isupper() else ranges
        if char in _CONTROLS:
            code = _CONTROLS[char]
        elif char == "b" and in_class:
            code = 8
        elif char == "x":
            code = self._hex(2)
        elif char == "u" and self._peek() == "{":
            end = self._text.index("}", self._at)
            code, self._at = int(self._text[self._at + 1 : end], 16), end + 1
        elif char == "u":
            code = self._hex(4)
        elif char.isalnum():
            raise Undecided
        else:
            code = ord(char)
        return ((code, code),)

    def _hex(self, digits: int) -> int:
        self._at += digits
        return int(self._text[self._at - digits : self._at], 16)


def _inverse(ranges: Ranges) -> Ranges:
    """All other characters."""
    found: list[tuple[int, int]] = []
    begin = 0
    for first, last in sorted(ranges):
        if first > begin:
            found.append((begin, first - 1))
        begin = max(begin, last + 1)
    return (*found, (begin, _LAST)) if begin <= _LAST else tuple(found)
