"""A circuit breaker per target: one that keeps failing is left alone for a while.

Closed, it counts failures in a row. Open, it refuses. After its time one call
at a time is let through as a trial (half open): a success closes it, a failure
opens it for twice as long.
"""

from dataclasses import dataclass
from enum import Enum

from janus_inference.provider_errors import ProviderFailure
from janus_kit.clock import Clock

_MOST_DOUBLINGS = 20
_MOST_TARGETS = 4096


class BreakerState(Enum):
    """The value is what the gauge shows."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """``failures`` in a row open it for ``open_s`` seconds, then twice as long, up to ``open_most_s``."""

    failures: int = 5
    open_s: float = 5.0
    open_most_s: float = 60.0


@dataclass(slots=True)
class _Breaker:
    failures: int = 0
    opened: int = 0
    until: float = 0.0
    on_trial: bool = False
    why: ProviderFailure | None = None


class Breakers:
    """The breakers of this process, by `provider/model`. They outlive a reload of the configuration."""

    def __init__(self, clock: Clock, rules: BreakerRules) -> None:
        self._clock = clock
        self.rules = rules
        self._breakers: dict[str, _Breaker] = {}

    def enter(self, target: str) -> bool:
        """Whether a call may go to the target now. Each one that did must tell how it ended."""
        breaker = self._breakers.get(target)
        if breaker is None or not breaker.opened:
            return True
        if breaker.on_trial or self._clock.monotonic() < breaker.until:
            return False
        breaker.on_trial = True
        return True

    def succeeded(self, target: str) -> None:
        """It answered, or refused in a way that shows it to be well."""
        self._breakers.pop(target, None)

    def spoke(self, target: str) -> None:
        """An answer began: a trial is over, however long the answer takes; the next failure ends what it won."""
        breaker = self._breakers.get(target)
        if breaker is not None and breaker.on_trial:
            breaker.opened, breaker.on_trial, breaker.failures = 0, False, self.rules.failures - 1

    def forget(self, provider: str) -> None:
        """Its settings are others now, so what is known of it does not hold."""
        for target in [each for each in self._breakers if each.partition("/")[0] == provider]:
            del self._breakers[target]

    def failed(self, target: str, failure: ProviderFailure) -> None:
        """It is in trouble; what it asked for itself (``retry-after``) may keep it open for longer."""
        if target not in self._breakers and len(self._breakers) >= _MOST_TARGETS:
            # Callers may make up names of models; the one that was heard of first goes.
            del self._breakers[next(iter(self._breakers))]
        breaker = self._breakers.setdefault(target, _Breaker())
        breaker.failures += 1
        breaker.why = failure
        if not breaker.on_trial and breaker.failures < self.rules.failures:
            return
        if breaker.opened and not breaker.on_trial:
            return  # a call from before it opened
        wait = min(self.rules.open_s * 2.0 ** min(breaker.opened, _MOST_DOUBLINGS), self.rules.open_most_s)
        if failure.retry_after is not None:
            wait = min(max(wait, failure.retry_after), self.rules.open_most_s)
        breaker.opened += 1
        breaker.until = self._clock.monotonic() + wait
        breaker.on_trial = False

    def left(self, target: str) -> None:
        """The call ended without telling anything about the target, e.g. because its caller went away."""
        if (breaker := self._breakers.get(target)) is not None:
            breaker.on_trial = False

    def state(self, target: str) -> BreakerState:
        """What the next caller will meet."""
        breaker = self._breakers.get(target)
        if breaker is None or not breaker.opened:
            return BreakerState.CLOSED
        return BreakerState.OPEN if self._clock.monotonic() < breaker.until else BreakerState.HALF_OPEN

    def worst(self) -> dict[str, BreakerState]:
        """By provider, the worst state of its targets; a provider that is not in it is closed. Safe from any thread."""
        found: dict[str, BreakerState] = {}
        for target in tuple(self._breakers):
            provider, state = target.partition("/")[0], self.state(target)
            found[provider] = max(found.get(provider, BreakerState.CLOSED), state, key=lambda each: each.value)
        return found

    def why(self, target: str) -> ProviderFailure | None:
        """The last failure of a target that is not closed."""
        breaker = self._breakers.get(target)
        return breaker.why if breaker is not None and breaker.opened else None

    def wait(self, target: str) -> float:
        """Seconds until a call may be tried again; at least a moment while a trial is under way."""
        breaker = self._breakers.get(target)
        if breaker is None or not breaker.opened:
            return 0.0
        return max(0.1, breaker.until - self._clock.monotonic())
