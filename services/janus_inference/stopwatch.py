"""How far a request is, where nobody asks how long it took."""

from collections.abc import Callable

from janus_inference.events import Usage


class Unwatched:
    """A ``ports.Stopwatch`` that only notes whether the provider may have the request."""

    is_connected = False

    def sent(self) -> None:
        """Nothing to do."""

    def connected(self) -> None:
        """See ``ports.Stopwatch``."""
        self.is_connected = True

    def heard(self) -> None:
        """Nothing to do."""

    def counts(self, used: Callable[[], Usage | None]) -> None:
        """Nothing to do."""
