"""What a model answers, as events, and the whole answer that they add up to.

A provider yields every kind here but Started, RouteChanged, Finished and
Failed, and ends with one Stopped; ``generation`` adds those. ``part_index`` numbers the
parts of the answer from 0 in the order in which they began.
"""

from dataclasses import dataclass
from enum import Enum

from janus_inference.model import Citation, Message, Opaque, ToolCall
from janus_kit.errors import JanusError


class FinishReason(Enum):
    """Why a model stopped."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"
    REFUSAL = "refusal"
    STOP_SEQUENCE = "stop_sequence"
    PAUSE = "pause"
    OTHER = "other"


def is_list_tier(tier: object) -> bool:
    """Whether a `service_tier` is the one that list prices are for; ``auto`` is what was asked for, and not a tier."""
    return not tier or tier in ("auto", "default", "standard", "standard_only", "on_demand")


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call; input is uncached + read + written, reasoning is part of output."""

    input_uncached_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False
    off_list: bool = False
    """Some of it is charged at other prices than the model's own: a tier, a longer cache, another model's work."""

    @property
    def input_tokens(self) -> int:
        """Everything that was read, from a cache or not."""
        return self.input_uncached_tokens + self.cache_read_tokens + self.cache_write_tokens


@dataclass(frozen=True, slots=True)
class Cost:
    """What usage costs, in millionths of a US dollar, by a price table of that version."""

    micro_usd: int
    price_version: str


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds from the request to the first event, in all, and Janus's share of the former."""

    time_to_first_event: float
    total: float
    overhead: float


@dataclass(frozen=True, slots=True)
class Started:
    """The first provider that was asked."""

    generation_id: str
    provider: str
    model: str
    attempt: int


@dataclass(frozen=True, slots=True)
class RouteChanged:
    """Another attempt answers; ``source`` and ``to`` are `provider/model`."""

    source: str
    to: str
    reason: str
    attempt: int


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, the natural logarithm of its probability, and the likeliest ones in its place."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text; ``logprobs`` are its tokens when they were asked for."""

    part_index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More reasoning; exactly one of text, summary and redacted."""

    part_index: int
    text: str | None = None
    summary: str | None = None
    redacted: bytes | None = None


@dataclass(frozen=True, slots=True)
class ReasoningSignature:
    part_index: int
    signature: bytes
    issuer: str


@dataclass(frozen=True, slots=True)
class ToolCallStarted:
    part_index: int
    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    part_index: int
    fragment: str


@dataclass(frozen=True, slots=True)
class ToolCallCompleted:
    """A whole call; ``problem`` says for the model what is wrong with its arguments."""

    part_index: int
    call: ToolCall
    valid_json: bool = True
    valid_schema: bool = True
    problem: str = ""


@dataclass(frozen=True, slots=True)
class CitationAdded:
    citation: Citation


@dataclass(frozen=True, slots=True)
class RefusalDelta:
    part_index: int
    text: str


@dataclass(frozen=True, slots=True)
class OpaqueAdded:
    part_index: int
    part: Opaque


@dataclass(frozen=True, slots=True)
class UsageUpdated:
    """Usage so far; replaces what was said before. Not a semantic event: nothing was answered."""

    usage: Usage
    cost: Cost | None = None


@dataclass(frozen=True, slots=True)
class Stopped:
    """The provider's own end of a whole answer; ``model`` is what it says to have asked."""

    reason: FinishReason
    provider_reason: str
    response_id: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is whole."""

    reason: FinishReason
    provider_reason: str
    usage: Usage
    timings: Timings
    provider_response_id: str = ""
    cost: Cost | None = None
    from_cache: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer is not whole and no more will come."""

    error: JanusError
    retryable: bool
    partial: bool
    usage: Usage
    cost: Cost | None = None


Delta = (
    TextDelta
    | ReasoningDelta
    | ReasoningSignature
    | ToolCallStarted
    | ToolCallArguments
    | ToolCallCompleted
    | CitationAdded
    | RefusalDelta
    | OpaqueAdded
)
ProviderEvent = Delta | UsageUpdated | Stopped
Event = Started | RouteChanged | Delta | UsageUpdated | Finished | Failed


@dataclass(frozen=True, slots=True)
class Numbered:
    """An event with its place in the stream, from 1, without gaps."""

    sequence: int
    event: Event


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: what the events of a finished stream add up to."""

    generation_id: str
    message: Message
    reason: FinishReason
    provider_reason: str
    usage: Usage
    provider: str
    model: str
    attempts: int
    timings: Timings
    cost: Cost | None = None
    from_cache: bool = False
    logprobs: tuple[TokenLogprob, ...] = ()
