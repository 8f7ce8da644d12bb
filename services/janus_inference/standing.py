"""How each provider did when it was last asked; what health reports without spending a call."""

from janus_inference.provider_errors import ProviderFailure
from janus_kit.clock import Clock

# After so long without a call nothing is known any more, and unknown is not bad.
FORGET_AFTER_S = 60.0
_BAD = {"auth", "billing", "unavailable", "unreachable"}


class Standings:
    """The last outcome of every provider."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._bad: dict[str, tuple[float, ProviderFailure]] = {}

    def succeeded(self, provider: str) -> None:
        """It answered."""
        self._bad.pop(provider, None)

    def failed(self, provider: str, failure: ProviderFailure) -> None:
        """It did not, in a way that will meet the next caller as well."""
        if failure.outcome in _BAD:
            self._bad[provider] = (self._clock.monotonic(), failure)

    def problem(self, provider: str) -> ProviderFailure | None:
        """The failure that still counts; None when all is well or nothing is known."""
        found = self._bad.get(provider)
        if found is None or self._clock.monotonic() - found[0] > FORGET_AFTER_S:
            return None
        return found[1]
