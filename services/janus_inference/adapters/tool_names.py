"""Names of tools, and ids of their calls, in the form that providers take.

A tool may be named `memory.search`; most providers allow no dot. There such a
tool goes by another name, the same in every call, and its own comes back. An
id that a conversation has twice goes by another one the second time.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace
from typing import Protocol

from janus_inference.dialects.call_ids import marked, told_apart
from janus_inference.events import ProviderEvent, ToolCallCompleted, ToolCallStarted
from janus_inference.model import Message, Prompt, ToolCall
from janus_inference.ports import Ask, Provider, TokenCounter

_FITS = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_FOREIGN = re.compile(r"[^A-Za-z0-9_-]", re.ASCII)


class CountingProvider(Provider, TokenCounter, Protocol):
    """A provider that also counts."""


class FittedCounter:
    """A ``TokenCounter`` that is given names as its provider takes them."""

    def __init__(self, counter: TokenCounter) -> None:
        self._counter = counter

    async def count_tokens(self, ask: Ask) -> int:
        ask = _with_ids_apart(ask)
        return await self._counter.count_tokens(_fitted(ask, _given_names(ask.prompt)))


class Fitted:
    """A ``Provider`` that is given names as it takes them, and answers with the tools' own."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    def dialect(self, ask: Ask) -> str:
        return self._provider.dialect(ask)

    def stream(self, ask: Ask) -> AbstractAsyncContextManager[AsyncIterator[Sequence[ProviderEvent]]]:
        ask = _with_ids_apart(ask)
        names = _given_names(ask.prompt)
        if not names:
            return self._provider.stream(ask)
        return _renamed(self._provider.stream(_fitted(ask, names)), names)

    async def warm(self) -> None:
        await self._provider.warm()

    async def close(self) -> None:
        await self._provider.close()


@asynccontextmanager
async def _renamed(
    answer: AbstractAsyncContextManager[AsyncIterator[Sequence[ProviderEvent]]], names: Mapping[str, str]
) -> AsyncIterator[AsyncIterator[Sequence[ProviderEvent]]]:
    own = {given: name for name, given in names.items()}
    async with answer as batches, aclosing(_own_names(batches, own)) as renamed:
        yield renamed


async def _own_names(
    batches: AsyncIterator[Sequence[ProviderEvent]], own: Mapping[str, str]
) -> AsyncGenerator[Sequence[ProviderEvent], None]:
    async for batch in batches:
        yield [_own_name(event, own) for event in batch]


def _own_name(event: ProviderEvent, own: Mapping[str, str]) -> ProviderEvent:
    match event:
        case ToolCallStarted(name=name) if name in own:
            return replace(event, name=own[name])
        case ToolCallCompleted(call=call) if call.name in own:
            return replace(event, call=replace(call, name=own[call.name]))
    return event


def _with_ids_apart(ask: Ask) -> Ask:
    apart = told_apart(ask.prompt.messages)
    return ask if apart is ask.prompt.messages else replace(ask, prompt=replace(ask.prompt, messages=tuple(apart)))


def _given_names(prompt: Prompt) -> Mapping[str, str]:
    """The names that do not fit, with those that stand for them; two tools never share one."""
    used = dict.fromkeys(_names(prompt))
    foreign = [name for name in used if not _FITS.fullmatch(name)]
    given: dict[str, str] = {}
    for name in foreign:
        plain = _FOREIGN.sub("_", name)[:64]
        taken = used.keys() | given.values()
        given[name] = marked(plain, name) if not plain or plain in taken else plain
    return given


def _names(prompt: Prompt) -> Iterable[str]:
    yield from (tool.name for tool in prompt.tools)
    yield from (part.name for message in prompt.messages for part in message.parts if isinstance(part, ToolCall))


def _fitted(ask: Ask, names: Mapping[str, str]) -> Ask:
    if not names:
        return ask
    prompt, choice = ask.prompt, ask.prompt.tool_choice
    if choice is not None:
        choice = replace(choice, name=names.get(choice.name, choice.name))
    return replace(
        ask,
        prompt=replace(
            prompt,
            tools=tuple(replace(tool, name=names.get(tool.name, tool.name)) for tool in prompt.tools),
            tool_choice=choice,
            messages=tuple(_message(message, names) for message in prompt.messages),
        ),
    )


def _message(message: Message, names: Mapping[str, str]) -> Message:
    if not any(isinstance(part, ToolCall) and part.name in names for part in message.parts):
        return message
    parts = (
        replace(part, name=names.get(part.name, part.name)) if isinstance(part, ToolCall) else part
        for part in message.parts
    )
    return replace(message, parts=tuple(parts))
