"""What a generation ends with when its answer is not whole and its provider did not say so."""

from dataclasses import dataclass

from janus_inference.answer_size import too_large as answer_too_large
from janus_inference.events import (
    Cost,
    Event,
    Failed,
    Numbered,
    RouteChanged,
    Started,
    Usage,
    UsageUpdated,
)
from janus_kit.errors import Cancelled, JanusError, NotFound, OutOfRange, Unavailable

UNKNOWN = Usage(estimated=True)


@dataclass(frozen=True, slots=True)
class Ending:
    """An end that Janus decides on; ``cause`` is for metrics."""

    cause: str
    error: JanusError
    retryable: bool

    def after(self, last: int, *, spoken: bool, usage: Usage = UNKNOWN, cost: Cost | None = None) -> Numbered:
        """The terminal event that follows the one of that sequence."""
        return Numbered(last + 1, Failed(self.error, self.retryable, spoken, usage, cost))


def is_semantic(event: Event) -> bool:
    """Whether something of an answer was said."""
    return not isinstance(event, Started | RouteChanged | UsageUpdated)


def unread() -> Ending:
    return Ending("linger", Cancelled(message="nobody read the generation for as long as it may linger"), False)


def stopping() -> Ending:
    error = Unavailable("inference", "the server that worked on the generation stopped", reason="DRAINING")
    return Ending("stopped", error, True)


def owner_gone() -> Ending:
    return Ending("owner_gone", Unavailable("inference", "the server that worked on the generation is gone"), True)


def too_large() -> Ending:
    return Ending("too_large", answer_too_large(), False)


def failed(error: JanusError) -> Ending:
    return Ending("error", error, False)


def events_lost() -> Unavailable:
    """Events that may have been read are gone: no more can be said without contradicting them."""
    return Unavailable("redis", "events of this generation were lost; it cannot be resumed", retry_after=None)


def not_found(generation_id: str) -> NotFound:
    """The same for what never was, what is another tenant's and what was not resumable."""
    return NotFound("generation", generation_id)


def beyond(last: int) -> OutOfRange:
    return OutOfRange(
        "CURSOR_OUT_OF_RANGE",
        f"after_sequence is beyond the generation's last event, {last}",
        {"last_sequence": str(last)},
    )
