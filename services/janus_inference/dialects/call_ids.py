"""Ids and names of tool calls in the forms that a prompt, or a provider, takes.

A conversation may go on at another provider than the one that made the call,
and not every provider takes every other's ids. What a model or a server makes
up is mended before anybody is told, so that every answer can be sent back.
"""

import hashlib
import re
from collections import deque
from collections.abc import Container, Sequence
from dataclasses import replace

from janus_inference.model import MOST_CALL_ID_CHARS, TOOL_NAME, Message, Part, ToolCall, ToolResult

ANTHROPIC = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)

RESPONSES = re.compile(r".{1,64}", re.DOTALL)

_PROMPT = re.compile(rf".{{1,{MOST_CALL_ID_CHARS}}}", re.DOTALL)
_FOREIGN = re.compile(r"[^A-Za-z0-9_.-]", re.ASCII)
_MARK_CHARS = 6


def fitting(call_id: str, form: re.Pattern[str], length: int) -> str:
    """The id itself where it has the form; else so many characters that always stand for it."""
    if form.fullmatch(call_id):
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:length]


def mended_id(given: str, taken: set[str]) -> str:
    """The id of an answer's next call: what was given, where a prompt takes it and it is not ``taken``."""
    number = len(taken)
    wanted = given or f"call_{number}"
    while (mended := fitting(wanted, _PROMPT, 64)) in taken:
        wanted = f"{wanted}_{number}"
    taken.add(mended)
    return mended


def told_apart(messages: Sequence[Message]) -> Sequence[Message]:
    """The conversation with no id for two calls; a result has that of its call.

    Where a server numbers its calls anew in each answer, and was not shown the
    earlier ones, an id may come again: a provider that minds would refuse every
    turn that has both.
    """
    ids = [part.call_id for message in messages for part in message.parts if isinstance(part, ToolCall)]
    if len(set(ids)) == len(ids):
        return messages
    taken: set[str] = set()
    made: dict[str, str] = {}
    waiting: dict[str, deque[str]] = {}

    def own(part: Part) -> Part:
        if isinstance(part, ToolCall):
            made[part.call_id] = mended_id(part.call_id, taken)
            waiting.setdefault(part.call_id, deque()).append(made[part.call_id])
            return replace(part, call_id=made[part.call_id])
        if isinstance(part, ToolResult):
            next_one = waiting.get(part.call_id)
            call_id = next_one.popleft() if next_one else made.get(part.call_id, part.call_id)
            return replace(part, call_id=call_id)
        return part

    apart: list[Message] = []
    for message in messages:
        if any(isinstance(part, ToolCall) for part in message.parts):
            # What of an earlier message got no result gets none any more.
            waiting.clear()
        apart.append(replace(message, parts=tuple(map(own, message.parts))))
    return apart


def mended_name(given: str, tools: Container[str]) -> str:
    """The name itself where a prompt takes it; else one like it, which is no tool's."""
    if TOOL_NAME.fullmatch(given):
        return given
    plain = _FOREIGN.sub("_", given)[:64] or "_"
    return plain if plain not in tools else marked(plain, given)


def marked(plain: str, name: str) -> str:
    """A name that is taken, with some characters that always stand for the one that it is given to."""
    mark = hashlib.sha256(name.encode()).hexdigest()[:_MARK_CHARS]
    return f"{plain[: 64 - _MARK_CHARS - 1]}_{mark}"
