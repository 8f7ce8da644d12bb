"""Prompt-cache breakpoints: a provider takes few, a conversation may have many."""

from collections.abc import Callable, Iterable, Iterator

from janus_inference.model import Message, Part, Role, ToolResult

MOST_BREAKPOINTS = 4
"""What Anthropic's models take in one request."""


def last_breakpoints(
    messages: Iterable[Message], most: int, carries: Callable[[Part, Role], bool] | None = None
) -> frozenset[int]:
    """Identities of the last marked parts, at most so many.

    Where more are marked, the last ones win: they cover the longest beginnings
    of the conversation, and a breakpoint is a hint that no call should fail for.
    ``carries``: whether a part is said in a form that can carry a breakpoint.
    One that cannot leaves it to the nearest before it that can.
    """
    marked: dict[int, None] = {}
    last: int | None = None
    for message in messages:
        for part in _each(message.parts):
            if carries is None or carries(part, message.role):
                last = id(part)
            if part.cache_breakpoint and last is not None:
                marked[last] = None
    return frozenset(list(marked)[-most:])


def _each(parts: Iterable[Part]) -> Iterator[Part]:
    """In order of what the provider sees: the parts of a tool's result come before its end."""
    for part in parts:
        if isinstance(part, ToolResult):
            yield from _each(part.parts)
        yield part
