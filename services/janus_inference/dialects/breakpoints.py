"""Prompt-cache breakpoints: a provider takes few, a conversation may have many."""

from collections.abc import Iterable, Iterator

from janus_inference.model import Message, Part, ToolResult

MOST_BREAKPOINTS = 4
"""What Anthropic's models take in one request."""


def last_breakpoints(messages: Iterable[Message], most: int) -> frozenset[int]:
    """Identities of the last marked parts, at most so many.

    Where more are marked, the last ones win: they cover the longest beginnings
    of the conversation, and a breakpoint is a hint that no call should fail for.
    """
    marked = [id(part) for message in messages for part in _each(message.parts) if part.cache_breakpoint]
    return frozenset(marked[-most:])


def _each(parts: Iterable[Part]) -> Iterator[Part]:
    """In order of what the provider sees: the parts of a tool's result come before its end."""
    for part in parts:
        if isinstance(part, ToolResult):
            yield from _each(part.parts)
        yield part
