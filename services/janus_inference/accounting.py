"""Usage in one normal form, computed by pure functions from what each provider says.

Providers disagree: OpenAI's input counts include what was read from the cache,
Anthropic's exclude it and are cumulative over a stream; some servers leave
reasoning out of the output. In the normal form the billed counts never
overlap. Numbers that are missing or make no sense count as 0, never negative;
where nothing else is said, nothing was reported.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from janus_inference.events import (
    Event,
    OpaqueAdded,
    ReasoningDelta,
    RefusalDelta,
    Stopped,
    TextDelta,
    ToolCallArguments,
    Usage,
    is_list_tier,
)
from janus_inference.model import (
    Audio,
    Document,
    Image,
    JsonSchemaFormat,
    Part,
    Prompt,
    Reasoning,
    Refusal,
    Text,
    ToolCall,
    ToolResult,
)

# About right for English; for other languages it is what an estimate is.
_BYTES_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 4
_TOKENS_PER_IMAGE = 1000
_TOKENS_PER_ADDRESS = 1000
# Of a page of 50 KB about 2,000 tokens are made, of a second of speech about 10.
_PDF_BYTES_PER_TOKEN = 25
_SOUND_BYTES_PER_TOKEN = 1600
# No call has more: a larger number makes no sense, and sums of such would not fit anywhere.
_MOST_TOKENS = 2**40


def openai_usage(said: Mapping[str, Any], tier: object = None) -> Usage | None:
    """Chat Completions, embeddings, and the servers that speak like them; None where it counts nothing.

    ``tier`` is the answer's `service_tier`.
    """
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
    return _reported(
        Usage(
            input_uncached_tokens=prompt - read - write,
            cache_read_tokens=read,
            cache_write_tokens=write,
            output_tokens=output,
            reasoning_tokens=reasoning,
            off_list=not is_list_tier(tier),
        )
    )


def openai_responses_usage(said: Mapping[str, Any], tier: object = None) -> Usage | None:
    """Responses: the same arithmetic as Chat Completions, under other names."""
    return openai_usage(
        {
            "prompt_tokens": said.get("input_tokens"),
            "completion_tokens": said.get("output_tokens"),
            "total_tokens": said.get("total_tokens"),
            "prompt_tokens_details": said.get("input_tokens_details"),
            "completion_tokens_details": said.get("output_tokens_details"),
        },
        tier,
    )


def anthropic_usage(said: Mapping[str, Any]) -> Usage | None:
    """Messages: input excludes both cache counts, so they are taken as they are. None where it counts nothing.

    The numbers of the whole are those of the model's own iterations; what it
    made others do within the call (an advisor, a compaction) is billed beside
    them and said only in their iterations, so it is added.
    """
    whole = _anthropic_tokens(said)
    thinking = _count(_mapping(said.get("output_tokens_details")).get("thinking_tokens"))
    own = replace(whole, reasoning_tokens=min(thinking, whole.output_tokens))
    iterations = said.get("iterations")
    others = [each for each in iterations if _is_others(each)] if isinstance(iterations, list) else []
    total = summed([own, *map(_anthropic_tokens, others)])
    by_others = any(isinstance(each.get("model"), str) for each in others)
    return _reported(replace(total, off_list=by_others or not all(map(_is_at_list_price, (said, *others)))))


def _is_at_list_price(said: Mapping[str, Any]) -> bool:
    """What Messages say of the tier, the speed, the place and the caches of a call or an iteration."""
    return (
        is_list_tier(said.get("service_tier"))
        and said.get("speed") in (None, "", "standard")
        and said.get("inference_geo") in (None, "", "global", "not_available")
        # The price of what is written to a cache is that for five minutes.
        and not _count(_mapping(said.get("cache_creation")).get("ephemeral_1h_input_tokens"))
    )


def _anthropic_tokens(said: Mapping[str, Any]) -> Usage:
    return Usage(
        input_uncached_tokens=_count(said.get("input_tokens")),
        cache_read_tokens=_count(said.get("cache_read_input_tokens")),
        cache_write_tokens=_count(said.get("cache_creation_input_tokens")),
        output_tokens=_count(said.get("output_tokens")),
    )


def _reported(usage: Usage) -> Usage | None:
    """No call reads nothing and writes nothing: such numbers would make it free, so they are none."""
    return usage if usage.input_tokens or usage.output_tokens else None


def _is_others(iteration: Any) -> bool:
    return isinstance(iteration, Mapping) and iteration.get("type") != "message"


def summed(usages: Iterable[Usage]) -> Usage:
    """The usage of several calls; an estimate as soon as one of them is."""
    total = Usage()
    for usage in usages:
        total = Usage(
            input_uncached_tokens=total.input_uncached_tokens + usage.input_uncached_tokens,
            cache_read_tokens=total.cache_read_tokens + usage.cache_read_tokens,
            cache_write_tokens=total.cache_write_tokens + usage.cache_write_tokens,
            output_tokens=total.output_tokens + usage.output_tokens,
            reasoning_tokens=total.reasoning_tokens + usage.reasoning_tokens,
            estimated=total.estimated or usage.estimated,
            off_list=total.off_list or usage.off_list,
        )
    return total


def apportioned(usage: Usage, weights: Sequence[int]) -> list[Usage]:
    """Shares of one call's usage by weight, whose sum is exactly that usage; each is an estimate.

    A single share is the usage itself.
    """
    if len(weights) == 1:
        return [usage]
    names = ("input_uncached_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
    columns = [_split(getattr(usage, name), weights) for name in names]
    return [
        Usage(uncached, read, write, output, reasoning, estimated=True, off_list=usage.off_list)
        for uncached, read, write, output, reasoning in zip(*columns, strict=True)
    ]


def _split(total: int, weights: Sequence[int]) -> list[int]:
    """By largest remainder, so that nothing is lost to rounding."""
    whole = sum(weights)
    if whole <= 0:
        weights, whole = [1] * len(weights), len(weights)
    shares = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda index: -(total * weights[index] % whole))
    for index in by_remainder[: total - sum(shares)]:
        shares[index] += 1
    return shares


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


def so_far(said: Usage | None, guess: Usage) -> Usage:
    """Of an answer that did not become whole: what was reported, or more if more was heard."""
    if said is None:
        return guess
    if not (said.input_tokens or said.output_tokens):
        # What it is charged at was said, and no number.
        return replace(guess, off_list=said.off_list)
    return replace(said, output_tokens=max(said.output_tokens, guess.output_tokens), estimated=True)


def said_bytes(event: Event | Stopped) -> int:
    """Bytes that the model wrote, which an estimate of its tokens is made of."""
    match event:
        case TextDelta(text=text) | RefusalDelta(text=text):
            return len(text) if text.isascii() else len(text.encode())
        case ReasoningDelta(text=str(text)) | ReasoningDelta(summary=str(text)):
            return len(text.encode())
        case ToolCallArguments(fragment=text):
            return len(text.encode())
        case OpaqueAdded(part=part):
            return len(part.data)
    return 0


def estimated_text_tokens(text: str) -> int:
    """Tokens of a text, guessed from its size; at least 1."""
    return max(1, -(-len(text.encode()) // _BYTES_PER_TOKEN))


def estimated_prompt_tokens(prompt: Prompt) -> int:
    """Tokens of a prompt, guessed from its size."""
    size = len(prompt.system.encode())
    size += sum(len(f"{tool.name}{tool.description}{tool.parameters_schema_json}".encode()) for tool in prompt.tools)
    if isinstance(prompt.response_format, JsonSchemaFormat):
        size += len(prompt.response_format.schema_json.encode())
    parts = [part for message in prompt.messages for part in message.parts]
    size += sum(len(text.encode()) for text in _texts(parts))
    return -(-size // _BYTES_PER_TOKEN) + _TOKENS_PER_MESSAGE * len(prompt.messages) + sum(map(_media_tokens, parts))


def _texts(parts: Iterable[Part]) -> Iterable[str]:
    for part in parts:
        match part:
            case Text(text=text) | Refusal(text=text):
                yield text
            case ToolCall(name=name, arguments_json=arguments):
                yield name
                yield arguments
            case ToolResult(parts=inner):
                yield from _texts(inner)
            case Reasoning(text=str(text)):
                yield text


def _media_tokens(part: Part) -> int:
    """Roughly: what a picture of middling size costs, and documents and sound by their bytes."""
    match part:
        case Image():
            return _TOKENS_PER_IMAGE
        case Document(media=media):
            if media.data is None:
                return _TOKENS_PER_ADDRESS
            plain = media.mime_type.startswith("text/")
            return -(-len(media.data) // (_BYTES_PER_TOKEN if plain else _PDF_BYTES_PER_TOKEN))
        case Audio(media=media):
            return -(-len(media.data) // _SOUND_BYTES_PER_TOKEN) if media.data else _TOKENS_PER_ADDRESS
        case ToolResult(parts=inner):
            return sum(map(_media_tokens, inner))
    return 0


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < _MOST_TOKENS else 0


def _first(*values: Any) -> int:
    return next((_count(value) for value in values if value is not None), 0)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
