"""The requests of Chat Completions that this server takes, as the published schema says them.

Validation is strict and closed: a field that is not listed here is refused by
name. Fields that exist at OpenAI and would change the answer, but that Janus
cannot honour, are listed in ``UNSUPPORTED`` and refused as such; a client
learns of it instead of getting a different answer than it asked for.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

# Name: values that ask for nothing special and are accepted. None always is.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": (),
    "functions": (),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "prompt_cache_options": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "top_logprobs": (),
    "verbosity": (),
    "web_search_options": (),
}
# They tell the operator of the API something and change no answer.
IGNORED = frozenset({"prompt_cache_key", "prompt_cache_retention", "safety_identifier", "user"})


class Closed(BaseModel):
    """Strict types, known fields only, no NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


class CacheBreakpoint(Closed):
    """Asks the provider to cache the prompt up to and including this part."""

    mode: Literal["explicit"]


class TextPart(Closed):
    """Plain text."""

    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: CacheBreakpoint | None = None


class RefusalPart(Closed):
    """What the assistant declined with."""

    type: Literal["refusal"]
    refusal: str


class ImageUrl(Closed):
    """An https URL that the provider fetches, or a `data:` URL with the bytes."""

    url: str
    detail: Literal["auto"] | None = None


class ImagePart(Closed):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl
    prompt_cache_breakpoint: CacheBreakpoint | None = None


class InputAudio(Closed):
    """Sound, base64."""

    data: str
    format: Literal["wav", "mp3"]


class AudioPart(Closed):
    """Sound."""

    type: Literal["input_audio"]
    input_audio: InputAudio
    prompt_cache_breakpoint: CacheBreakpoint | None = None


class FileData(Closed):
    """A document as a `data:` URL. Files by id are not kept here."""

    file_data: str
    filename: str | None = None


class FilePart(Closed):
    """A document."""

    type: Literal["file"]
    file: FileData
    prompt_cache_breakpoint: CacheBreakpoint | None = None


def _member(field: str) -> Discriminator:
    """Chooses a union's member by its text field, so that errors speak of that member only."""

    def tag(value: Any) -> str:
        found = value.get(field) if isinstance(value, dict) else getattr(value, field, None)
        return f"<{found}>"

    return Discriminator(tag, custom_error_type="unknown_member", custom_error_message=f"has no known {field}")


def _content(value: Any) -> str:
    return "<str>" if isinstance(value, str) else "<parts>"


Part = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[ImagePart, Tag("<image_url>")]
    | Annotated[AudioPart, Tag("<input_audio>")]
    | Annotated[FilePart, Tag("<file>")],
    _member("type"),
]
AssistantPart = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[RefusalPart, Tag("<refusal>")], _member("type")
]
TextContent = Annotated[
    Annotated[str, Tag("<str>")] | Annotated[list[TextPart], Tag("<parts>")], Discriminator(_content)
]
UserContent = Annotated[Annotated[str, Tag("<str>")] | Annotated[list[Part], Tag("<parts>")], Discriminator(_content)]
AssistantContent = Annotated[
    Annotated[str, Tag("<str>")] | Annotated[list[AssistantPart], Tag("<parts>")], Discriminator(_content)
]


class FunctionCall(Closed):
    """Which function the assistant called, with what; the arguments are JSON text."""

    name: str
    arguments: str


class ToolCall(Closed):
    """A tool call of the assistant."""

    id: str
    index: Annotated[int | None, Field(description="Of an answer that was streamed; ignored.")] = None
    type: Literal["function"] = "function"
    function: FunctionCall


class SystemMessage(Closed):
    """Instructions; `developer` is the newer name of the same role."""

    role: Literal["system", "developer"]
    content: TextContent
    name: str | None = None


class UserMessage(Closed):
    """What the person said."""

    role: Literal["user"]
    content: UserContent
    name: str | None = None


class AssistantMessage(Closed):
    """What the model said, and which tools it called; an answer can be sent back as it came."""

    role: Literal["assistant"]
    content: AssistantContent | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    name: str | None = None
    annotations: Annotated[list[Any] | None, Field(description="Of an answer; ignored.")] = None
    audio: None = None
    function_call: None = None


class ToolMessage(Closed):
    """What a tool answered."""

    role: Literal["tool"]
    content: TextContent
    tool_call_id: str


Message = Annotated[
    Annotated[SystemMessage, Tag("<system>")]
    | Annotated[SystemMessage, Tag("<developer>")]
    | Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")]
    | Annotated[ToolMessage, Tag("<tool>")],
    _member("role"),
]


class FunctionDefinition(Closed):
    """A function that the model may call; `parameters` is a JSON Schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Closed):
    """A tool that the model may call; only functions."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(Closed):
    """A function by name."""

    name: str


class NamedTool(Closed):
    """The tool that must be called."""

    type: Literal["function"]
    function: FunctionName


class TextFormat(Closed):
    """Plain text."""

    type: Literal["text"]


class JsonObjectFormat(Closed):
    """Any valid JSON object."""

    type: Literal["json_object"]


class JsonSchema(Closed):
    """A schema with its name."""

    model_config = ConfigDict(populate_by_name=True)

    name: str
    description: str | None = None
    # `schema` itself would hide a method of BaseModel.
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Closed):
    """JSON that holds to a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("<text>")]
    | Annotated[JsonObjectFormat, Tag("<json_object>")]
    | Annotated[JsonSchemaFormat, Tag("<json_schema>")],
    _member("type"),
]


class StreamOptions(Closed):
    """Options of a streamed answer."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


def _choice(value: Any) -> str:
    return "<str>" if isinstance(value, str) else "<named>"


class ChatRequest(Closed):
    """A request for a chat completion."""

    model: Annotated[str, Field(description="An alias, or `provider/model`; see `/v1/models`.")]
    messages: list[Message] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: int | None = None
    max_tokens: Annotated[int | None, Field(description="Older name of `max_completion_tokens`.")] = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: (
        Annotated[Annotated[str, Tag("<str>")] | Annotated[list[str], Tag("<parts>")], Discriminator(_content)] | None
    ) = None
    n: Literal[1] | None = None
    tools: list[Tool] | None = None
    tool_choice: (
        Annotated[
            Annotated[Literal["none", "auto", "required"], Tag("<str>")] | Annotated[NamedTool, Tag("<named>")],
            Discriminator(_choice),
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high"] | None = None
    metadata: Annotated[dict[str, str] | None, Field(description="Labels for usage reports, at most 16.")] = None
