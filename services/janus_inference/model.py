"""What is asked of a model: messages, parts and the prompt, free of any wire format.

Values are as the contract's comments bound them once ``validation`` has seen
them. Optional numbers are None where the caller left them to the model.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

MOST_PARTS = 1024
"""Parts of one message."""
MOST_CITATION_BYTES = 64 * 1024
"""What an issuer may say of one source."""
MOST_TEXT_BYTES = 1024 * 1024
"""One text, and one proof of reasoning."""
MOST_ANSWER_BYTES = 16 * 1024 * 1024
"""An answer that is held until its end, and so each text that an assistant's message goes back with."""
MOST_OPAQUE_BYTES = 3 * 1024 * 1024
"""One block of a provider's own."""
MOST_ARGUMENTS_BYTES = 256 * 1024
"""Of one call of a tool."""
MOST_CALL_ID_CHARS = 128
MOST_TYPE_CHARS = 128
"""The provider's name for a kind of block."""
TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


class Role(Enum):
    """Who speaks."""

    UNSPECIFIED = "unspecified"
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text."""

    text: str
    cache_breakpoint: bool = False


@dataclass(frozen=True, slots=True)
class Media:
    """Bytes (``data``) or an address (``uri``) of an image or a sound; exactly one is set."""

    mime_type: str
    data: bytes | None = None
    uri: str | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """A picture."""

    media: Media
    cache_breakpoint: bool = False


@dataclass(frozen=True, slots=True)
class Audio:
    """Sound."""

    media: Media
    cache_breakpoint: bool = False


@dataclass(frozen=True, slots=True)
class Document:
    """A document for the model to read; ``citations``: and to cite."""

    media: Media
    title: str = ""
    cache_breakpoint: bool = False
    citations: bool = False


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model's request to run a tool; the arguments as the model wrote them."""

    call_id: str
    name: str
    arguments_json: str
    cache_breakpoint: bool = False


@dataclass(frozen=True, slots=True)
class ToolResult:
    """A tool's answer to one call."""

    call_id: str
    parts: tuple["Part", ...]
    is_error: bool = False
    cache_breakpoint: bool = False


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Thinking: at most one of text, summary and redacted, and the issuer's proof of it."""

    text: str | None = None
    summary: str | None = None
    redacted: bytes | None = None
    signature: bytes = b""
    issuer: str = ""
    cache_breakpoint: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """The model declined, in its own words."""

    text: str
    cache_breakpoint: bool = False


@dataclass(frozen=True, slots=True)
class Citation:
    """A source for code points ``start`` to ``end`` of text part ``part_index``; 0 and 0: all of it.

    ``data`` is the source as its issuer said it, and shown to its issuer alone; empty where it takes none back.
    """

    start: int = 0
    end: int = 0
    title: str = ""
    uri: str = ""
    quote: str = ""
    part_index: int = 0
    issuer: str = ""
    data: bytes = b""
    cache_breakpoint: bool = False


@dataclass(frozen=True, slots=True)
class Opaque:
    """A provider's own block, kept as it came and shown to its issuer alone."""

    issuer: str
    type: str
    data: bytes
    cache_breakpoint: bool = False


@dataclass(frozen=True, slots=True)
class Empty:
    """A part whose kind was not set, or is not known to this version; never valid."""

    cache_breakpoint: bool = False


Part = Text | Image | Audio | Document | ToolCall | ToolResult | Reasoning | Refusal | Citation | Opaque | Empty


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    parts: tuple[Part, ...]
    name: str = ""
    id: str = ""


@dataclass(frozen=True, slots=True)
class ToolDefinition:
    """A tool that the model may call; the schema is one JSON text, empty for no arguments."""

    name: str
    description: str = ""
    parameters_schema_json: str = ""
    strict: bool = False


class ToolChoiceMode(Enum):
    """A rule for calling tools."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"
    NAMED = "named"


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Which tools may be called; ``name`` goes with NAMED."""

    mode: ToolChoiceMode
    name: str = ""


@dataclass(frozen=True, slots=True)
class JsonFormat:
    """The answer is any JSON object."""


@dataclass(frozen=True, slots=True)
class JsonSchemaFormat:
    """The answer is JSON that holds to a schema."""

    name: str
    schema_json: str
    description: str = ""
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    top_logprobs: int | None = None


class Effort(Enum):
    """Coarse amount of thinking."""

    NONE = "none"
    MINIMAL = "minimal"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


@dataclass(frozen=True, slots=True)
class ReasoningOptions:
    """How much the model thinks before it speaks; ``budget_tokens`` 0 is off."""

    effort: Effort | None = None
    budget_tokens: int | None = None
    summary: bool = False


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Time limits of a call in seconds; None is the server's."""

    connect: float | None = None
    first_event: float | None = None
    idle: float | None = None
    total: float | None = None


@dataclass(frozen=True, slots=True)
class Routing:
    """What to do when the first choice fails; ``hedge_after`` in seconds."""

    fallbacks: tuple[str, ...] = ()
    hedge_after: float | None = None


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """Use of the exact response cache; ``max_age`` in seconds."""

    read: bool = False
    write: bool = False
    max_age: float | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: ``tenant`` separates data, ``subject`` is the person, program or key within it."""

    tenant: str
    subject: str


class EmbedPurpose(Enum):
    """What a vector is for."""

    DOCUMENT = "document"
    QUERY = "query"


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked of a model; the same for the unary and the streamed call."""

    messages: tuple[Message, ...]
    model: str = ""
    system: str = ""
    tools: tuple[ToolDefinition, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: JsonFormat | JsonSchemaFormat | None = None
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    max_output_tokens: int | None = None
    reasoning: ReasoningOptions | None = None
    timeouts: Timeouts = Timeouts()
    routing: Routing = Routing()
    cache: CachePolicy = CachePolicy()
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    provider_options_json: str = ""
    resumable: bool = False
    linger: float | None = None
    request_id: str = ""

    @property
    def may_call(self) -> bool:
        """Whether there is any tool: the caller's, or maybe one of the provider's among its options."""
        return bool(self.tools or self.provider_options_json)
