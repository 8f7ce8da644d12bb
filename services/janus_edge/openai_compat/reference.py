"""The answers' shapes, for the OpenAPI page only: answers themselves are written by hand."""

from typing import Any, Literal

from pydantic import BaseModel, Field

_REFERENCE = "#/components/schemas/{model}"
_TEXTS = {
    400: "The request is wrong; `param` names the field.",
    404: "There is no such model.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    429: "A limit is reached, here or at the provider; see Retry-After.",
    499: "The call was cancelled.",
    500: "A bug; the message holds an incident id that the log has too.",
    503: "The mesh or the provider is away; see Retry-After.",
    504: "The deadline passed.",
}


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = Field(description="The field of the request that is wrong.")
    code: str | None = Field(description="A stable reason, e.g. `model_not_found`.")


class ErrorBody(BaseModel):
    """An error in OpenAI's shape."""

    error: ErrorDetail


class Model(BaseModel):
    """A model or alias."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """All models and aliases."""

    object: Literal["list"]
    data: list[Model]


class AnsweredFunction(BaseModel):
    """The function to call; the arguments are JSON text, as the model wrote it."""

    name: str
    arguments: str


class AnsweredToolCall(BaseModel):
    """A tool that the model asks for."""

    id: str
    type: Literal["function"]
    function: AnsweredFunction


class Answer(BaseModel):
    """What the model said."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: list[AnsweredToolCall] | None = None


class AnswerChoice(BaseModel):
    """The one answer."""

    index: int
    message: Answer
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"]
    logprobs: None = None


class PromptDetails(BaseModel):
    """Parts of the prompt's tokens."""

    cached_tokens: int
    cache_write_tokens: int


class CompletionDetails(BaseModel):
    """Parts of the answer's tokens."""

    reasoning_tokens: int


class CompletionUsage(BaseModel):
    """Tokens of the call."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class ChatCompletion(BaseModel):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str = Field(description="`provider/model` that answered, after aliases and fallbacks.")
    choices: list[AnswerChoice]
    usage: CompletionUsage


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """FastAPI's ``responses`` for these statuses."""
    return {status: {"model": ErrorBody, "description": _TEXTS[status]} for status in statuses}


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """An operation's request body that refers to the model; see ``complete``."""
    schema = {"$ref": _REFERENCE.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def complete(document: dict[str, Any], *models: type[BaseModel]) -> None:
    """Add the models, and what they refer to; take out FastAPI's 422, which is never answered."""
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for model in models:
        described = model.model_json_schema(ref_template=_REFERENCE)
        schemas.update(described.pop("$defs", {}))
        schemas[model.__name__] = described
