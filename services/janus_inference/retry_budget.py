"""How many extra calls retries and hedges may add: a share of the first attempts, so that
a provider in trouble is not given more work by everybody's retries.

Counted per provider over the last minute, in this process.
"""

from collections import defaultdict, deque
from dataclasses import dataclass, field

from janus_kit.clock import Clock

_WINDOW_S = 60


@dataclass(slots=True)
class _Minute:
    """Calls by second: [second, first attempts, extra ones]."""

    seconds: deque[list[int]] = field(default_factory=deque)
    firsts: int = 0
    extras: int = 0

    def now(self, second: int) -> list[int]:
        """This second's entry, with what is over a minute old forgotten."""
        while self.seconds and self.seconds[0][0] <= second - _WINDOW_S:
            _, firsts, extras = self.seconds.popleft()
            self.firsts -= firsts
            self.extras -= extras
        if not self.seconds or self.seconds[-1][0] != second:
            self.seconds.append([second, 0, 0])
        return self.seconds[-1]


class RetryBudget:
    """``ratio`` extra attempts for each first one, or ``least`` a minute if that is more."""

    def __init__(self, clock: Clock, *, ratio: float, least: int) -> None:
        self._clock = clock
        self.ratio = ratio
        self.least = least
        self._minutes: dict[str, _Minute] = defaultdict(_Minute)

    def first(self, provider: str) -> None:
        """A call's first attempt at this provider."""
        minute = self._minutes[provider]
        minute.now(self._second())[1] += 1
        minute.firsts += 1

    def take(self, provider: str) -> bool:
        """Whether a call may make an extra attempt at this provider; it is counted when it may."""
        minute = self._minutes[provider]
        entry = minute.now(self._second())
        if minute.extras + 1 > max(self.least, self.ratio * minute.firsts):
            return False
        entry[2] += 1
        minute.extras += 1
        return True

    def back(self, provider: str, *, is_first: bool) -> None:
        """An attempt that was counted a moment ago was not made."""
        minute = self._minutes[provider]
        entry = minute.now(self._second())
        if is_first:
            entry[1], minute.firsts = entry[1] - 1, minute.firsts - 1
        else:
            entry[2], minute.extras = entry[2] - 1, minute.extras - 1

    def used(self, provider: str) -> float:
        """Share of the budget that the last minute used, 0 to 1. Changes nothing, so it is safe from any thread."""
        minute = self._minutes.get(provider)
        oldest = self._second() - _WINDOW_S
        seconds = [each for each in tuple(minute.seconds) if each[0] > oldest] if minute is not None else []
        most = max(self.least, self.ratio * sum(firsts for _, firsts, _ in seconds))
        return min(1.0, sum(extras for _, _, extras in seconds) / most) if most else 1.0

    def _second(self) -> int:
        return int(self._clock.monotonic())
