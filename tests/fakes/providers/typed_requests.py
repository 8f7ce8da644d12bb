"""Requests that prompts become, held against the SDKs' own types."""

from functools import cache
from typing import Any

from pydantic import TypeAdapter, with_config

from janus_inference.dialects.anthropic_request import messages_body
from janus_inference.dialects.openai_chat_request import chat_body
from janus_inference.model import Prompt
from janus_inference.profiles import OPENAI, ChatProfile
from janus_kit.errors import InvalidArgument

SCHEMA = '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}'


@cache
def adapter(kind: str) -> TypeAdapter[Any]:
    """The SDK's request type; a field that it does not have is an error."""
    if kind == "openai":
        from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming as Params
    elif kind == "count":
        from anthropic.types.message_count_tokens_params import (  # type: ignore[assignment]
            MessageCountTokensParams as Params,
        )
    elif kind == "anthropic beta":
        from anthropic.types.beta.message_create_params import (  # type: ignore[assignment]
            MessageCreateParamsStreaming as Params,
        )
    else:
        from anthropic.types.message_create_params import (  # type: ignore[assignment]
            MessageCreateParamsStreaming as Params,
        )
    return TypeAdapter(with_config({"extra": "forbid"})(Params))


def chat(asked: Prompt, profile: ChatProfile = OPENAI) -> dict[str, Any]:
    body = chat_body(asked, "gpt", profile, "openai")
    # Iterables are validated lazily; dumping walks through them.
    adapter("openai").dump_python(adapter("openai").validate_python(body))
    return body


def messages(asked: Prompt, model: str = "claude") -> dict[str, Any]:
    body = messages_body(asked, model, "anthropic")
    # The API takes these for the models that have them; the SDK's types no longer do.
    typed = {name: value for name, value in body.items() if name not in ("temperature", "top_p", "top_k")}
    adapter("anthropic").dump_python(adapter("anthropic").validate_python(typed))
    return body


def refused_fields(error: InvalidArgument) -> list[str]:
    assert error.reason == "CAPABILITY_UNSUPPORTED"
    assert error.metadata["capability"]
    return [violation.field for violation in error.violations]
