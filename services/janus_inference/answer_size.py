"""How large an answer may become where it is held: until it is whole, to be stored, or to be resumed."""

from janus_inference.events import (
    CitationAdded,
    Event,
    OpaqueAdded,
    ProviderEvent,
    ReasoningDelta,
    ReasoningSignature,
    RefusalDelta,
    TextDelta,
    ToolCallArguments,
    ToolCallCompleted,
)
from janus_inference.model import MOST_ANSWER_BYTES, MOST_ARGUMENTS_BYTES, MOST_PARTS
from janus_inference.provider_errors import ProviderFailure
from janus_kit.errors import JanusError, ResourceExhausted

MOST_BYTES = MOST_ANSWER_BYTES
# What an event takes beside its text, a fragment of arguments, which is also held as it came, and a token.
_EVENT_BYTES = 256
_FRAGMENT_BYTES = 64
_TOKEN_BYTES = 16
# What an event of its own takes where each is kept as it was numbered.
_KEPT_BYTES = 16


class AnswerSize:
    """Bytes of an answer so far, as ``coalesce.Joined`` holds it: pieces of one part are one while no other comes."""

    def __init__(self) -> None:
        self.bytes = 0
        self._last: tuple[object, ...] = ()

    def add(self, event: ProviderEvent) -> None:
        """One more event of it."""
        match event:
            case TextDelta(part_index=part, text=text, logprobs=()) | RefusalDelta(part_index=part, text=text):
                self._piece((type(event), part), text)
            case ToolCallArguments(part_index=part, fragment=text):
                self._piece((type(event), part), text)
                self.bytes += _FRAGMENT_BYTES
            case ReasoningDelta(part_index=part, text=str(text)) | ReasoningDelta(part_index=part, summary=str(text)):
                self._piece((type(event), part, event.text is None), text)
            case _:
                self._last = ()
                self.bytes += _EVENT_BYTES + _held_bytes(event)

    def _piece(self, of: tuple[object, ...], text: str) -> None:
        if of != self._last:
            self._last = of
            self.bytes += _EVENT_BYTES
        self.bytes += _size(text)


def kept_bytes(event: Event) -> int:
    """What an event adds to an answer that is kept event by event."""
    match event:
        case TextDelta(text=text, logprobs=()) | RefusalDelta(text=text) | ToolCallArguments(fragment=text):
            return _KEPT_BYTES + _size(text)
        case ReasoningDelta(text=str(text)) | ReasoningDelta(summary=str(text)):
            return _KEPT_BYTES + _size(text)
    return _KEPT_BYTES + _held_bytes(event)


def _held_bytes(event: Event | ProviderEvent) -> int:
    match event:
        case TextDelta(text=text, logprobs=tokens):
            spelt = sum(
                _size(token.token) + sum(_TOKEN_BYTES + _size(other) for other, _ in token.top) for token in tokens
            )
            return _size(text) + _TOKEN_BYTES * len(tokens) + spelt
        case ReasoningDelta(redacted=bytes(data)) | ReasoningSignature(signature=data):
            return len(data)
        case ToolCallCompleted(call=call):
            return _size(call.arguments_json)
        case CitationAdded(citation=said):
            return len(said.data) + _size(f"{said.quote}{said.title}{said.uri}")
        case OpaqueAdded(part=part):
            return len(part.data)
    return 0


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def too_large() -> ResourceExhausted:
    """What the caller of an answer that became larger is told."""
    return ResourceExhausted("MESSAGE_TOO_LARGE", f"the answer is larger than {MOST_BYTES} bytes")


def broken_off(error: JanusError | None = None) -> ProviderFailure:
    """The attempt that is ended for it: nothing is wrong with its provider."""
    return ProviderFailure(error or too_large(), retryable=False, elsewhere=False, outcome="too_large")


def arguments_too_large() -> ProviderFailure:
    """A call that could not be said again in the next prompt."""
    text = f"the arguments of a tool call are larger than {MOST_ARGUMENTS_BYTES} bytes"
    return broken_off(ResourceExhausted("MESSAGE_TOO_LARGE", text))


def too_many_parts() -> ProviderFailure:
    """A message that could not be said again either."""
    return broken_off(ResourceExhausted("MESSAGE_TOO_LARGE", f"the answer has more than {MOST_PARTS} parts"))
