"""Usage in one normal form, computed by pure functions from what each provider says.

Providers disagree: OpenAI's input counts include what was read from the cache,
Anthropic's exclude it and are cumulative over a stream; some servers leave
reasoning out of the output. In the normal form the billed counts never
overlap. Numbers that are missing or make no sense count as 0, never negative.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from janus_inference.events import Usage
from janus_inference.model import Message, Prompt, Reasoning, Refusal, Text, ToolCall, ToolResult

# About right for English; for other languages it is what an estimate is.
_BYTES_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 4


def openai_usage(said: Mapping[str, Any]) -> Usage:
    """Chat Completions, embeddings, and the servers that speak like them."""
    details = _mapping(said.get("prompt_tokens_details"))
    output_details = _mapping(said.get("completion_tokens_details"))
    prompt = _count(said.get("prompt_tokens"))
    # DeepSeek and Together say it beside the details instead of in them.
    read = _first(details.get("cached_tokens"), said.get("prompt_cache_hit_tokens"), said.get("cached_tokens"))
    write = _count(details.get("cache_write_tokens"))
    read = min(read, prompt)
    write = min(write, prompt - read)
    output = _count(said.get("completion_tokens"))
    reasoning = _count(output_details.get("reasoning_tokens"))
    if reasoning and (reasoning > output or _count(said.get("total_tokens")) == prompt + output + reasoning):
        # Some servers count reasoning beside the output instead of within it.
        output += reasoning
    return Usage(
        input_uncached_tokens=prompt - read - write,
        cache_read_tokens=read,
        cache_write_tokens=write,
        output_tokens=output,
        reasoning_tokens=reasoning,
    )


def anthropic_usage(said: Mapping[str, Any]) -> Usage:
    """Messages: input excludes both cache counts, so they are taken as they are."""
    output = _count(said.get("output_tokens"))
    thinking = _count(_mapping(said.get("output_tokens_details")).get("thinking_tokens"))
    return Usage(
        input_uncached_tokens=_count(said.get("input_tokens")),
        cache_read_tokens=_count(said.get("cache_read_input_tokens")),
        cache_write_tokens=_count(said.get("cache_creation_input_tokens")),
        output_tokens=output,
        reasoning_tokens=min(thinking, output),
    )


def merged(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Cumulative usage: a later number replaces the earlier one, an absent one does not."""
    return {**before, **{key: value for key, value in now.items() if value is not None}}


def estimate(prompt_tokens: int, output_bytes: int) -> Usage:
    """Usage of a call whose provider did not say: flagged as estimated."""
    return Usage(
        input_uncached_tokens=prompt_tokens,
        output_tokens=-(-output_bytes // _BYTES_PER_TOKEN),
        estimated=True,
    )


def estimated_prompt_tokens(prompt: Prompt) -> int:
    """Tokens of a prompt, guessed from its size."""
    size = len(prompt.system.encode())
    size += sum(len(f"{tool.name}{tool.description}{tool.parameters_schema_json}".encode()) for tool in prompt.tools)
    size += sum(len(text.encode()) for message in prompt.messages for text in _texts(message))
    return -(-size // _BYTES_PER_TOKEN) + _TOKENS_PER_MESSAGE * len(prompt.messages)


def _texts(message: Message) -> Iterable[str]:
    for part in message.parts:
        match part:
            case Text(text=text) | Refusal(text=text):
                yield text
            case ToolCall(name=name, arguments_json=arguments):
                yield name
                yield arguments
            case ToolResult(parts=parts):
                yield from (inner.text for inner in parts if isinstance(inner, Text))
            case Reasoning(text=str(text)):
                yield text


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _first(*values: Any) -> int:
    return next((_count(value) for value in values if value is not None), 0)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
