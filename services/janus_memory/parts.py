"""Which optional parts were away when last asked."""


class Parts:
    """The state of `redis`, `chroma`, `embedder`, … as the last use of each found it.

    Hints for answers that do not use a part themselves; whoever does use it
    finds out for itself.
    """

    def __init__(self) -> None:
        self._away: set[str] = set()

    def away(self, part: str) -> None:
        """The part failed just now."""
        self._away.add(part)

    def back(self, part: str) -> None:
        """The part answered just now."""
        self._away.discard(part)

    def is_away(self, part: str) -> bool:
        """Whether the last use failed."""
        return part in self._away
