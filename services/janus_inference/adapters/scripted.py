"""The rehearsal: a provider without a language model, so that everything can be seen without a key.

It says what it is and answers by rule. Asked with the same prompt it gives the
same answer:

- memories that the prompt carries between ``<recalled_memories>`` and
  ``</recalled_memories>``, one a line that begins with `- `, are repeated, but
  for its own answers, since answers that quote answers grow for ever;
- results of tools are reported;
- directives in the last user message, each at the start of a line, those that
  take a number with more words after it if need be:
  `/call TOOL {json}` calls a tool (several lines: several calls, whether the
  tools were offered or not, so that what the system permits can be tried);
  `/pace MS` waits so long before every word; `/long N` answers with N words;
  `/think TEXT` thinks that first; `/refuse TEXT` declines;
  `/fail KIND` fails before the first word, with KIND one of rate_limited,
  unavailable, auth, context, rejected and broken; `/break N` breaks off after
  N words; `/hang N` falls silent after N words.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass

from janus_inference.dialects.capabilities import unsupported
from janus_inference.dialects.json_text import compact
from janus_inference.dialects.parts import CallCheck, OpenCall
from janus_inference.events import (
    FinishReason,
    ProviderEvent,
    ReasoningDelta,
    ReasoningSignature,
    RefusalDelta,
    Stopped,
    TextDelta,
    ToolCallArguments,
    Usage,
    UsageUpdated,
)
from janus_inference.model import JsonFormat, JsonSchemaFormat, Message, Prompt, Role, Text, ToolCall, ToolResult
from janus_inference.ports import Ask
from janus_inference.provider_errors import Refused, broken, classify
from janus_kit.errors import InvalidArgument

ISSUER = "scripted"
INTRODUCTION = "This is a rehearsal without a language model, so I can only repeat what I was given."
NOTHING_RECALLED = "Nothing was recalled for this turn."

_MEMORIES = re.compile(r"<recalled_memories>(.*?)</recalled_memories>", re.DOTALL)
_ORDER = re.compile(r"^/(call|think|refuse|fail)\b[ \t]*(.*)$", re.MULTILINE)
_NUMBER = re.compile(r"^/(pace|long|break|hang)[ \t]+(\S+)[ \t]*", re.MULTILINE)
# A word with the white space before it, so that the pieces add up to the text.
_WORD = re.compile(r"\s*\S+")
_MAX_WORDS = 1_000_000
_MAX_PACE_MS = 10_000
_MAX_QUOTE = 400
_FAILURES = {
    "rate_limited": Refused(429),
    "unavailable": Refused(529),
    "auth": Refused(401),
    "context": Refused(400, code="context_length_exceeded"),
    "rejected": Refused(400),
}


@dataclass(frozen=True, slots=True)
class _Script:
    """What the answer will be."""

    words: tuple[str, ...]
    thought: str = ""
    refusal: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    pace_s: float = 0.0
    fail: str = ""
    break_after: int | None = None
    hang_after: int | None = None


class Scripted:
    """A ``Provider``; ``pace_ms`` is the time between two words."""

    def __init__(self, name: str, pace_ms: float) -> None:
        self._name = name
        self._pace_s = pace_ms / 1000

    def dialect(self, ask: Ask) -> str:
        return "scripted"

    def stream(self, ask: Ask) -> AbstractAsyncContextManager[AsyncIterator[Sequence[ProviderEvent]]]:
        if ask.options:
            raise InvalidArgument("prompt.provider_options_json", "the rehearsal takes no options")
        if isinstance(ask.prompt.response_format, JsonSchemaFormat):
            rule = "the rehearsal cannot write to a schema"
            raise unsupported(ask.model, "JSON_SCHEMA", "prompt.response_format.json_schema", rule)
        return self._answering(_script(ask.prompt, self._pace_s), ask)

    @asynccontextmanager
    async def _answering(self, script: _Script, ask: Ask) -> AsyncIterator[AsyncIterator[Sequence[ProviderEvent]]]:
        if script.fail:
            refused = _FAILURES.get(script.fail)
            if refused is None:
                raise broken(self._name, "it was told to fail")
            raise classify(self._name, ask.model, refused)
        ask.stopwatch.sent()
        ask.stopwatch.connected()
        async with aclosing(self._play(script, ask)) as batches:
            yield batches

    async def count_tokens(self, ask: Ask) -> int:
        """The words of the prompt, which are what it counts as tokens; see ``TokenCounter``."""
        return _words_of(ask.prompt)

    async def warm(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def _play(self, script: _Script, ask: Ask) -> AsyncGenerator[Sequence[ProviderEvent], None]:
        prompt, part, spoken = ask.prompt, 0, 0
        if script.thought:
            yield [ReasoningDelta(part, text=script.thought), ReasoningSignature(part, b"rehearsed", ISSUER)]
            spoken += len(script.thought.split())
            part += 1
        reason = FinishReason.STOP
        written = ""
        if script.refusal:
            yield [RefusalDelta(part, script.refusal)]
            spoken += len(script.refusal.split())
            reason = FinishReason.REFUSAL
        for number, word in enumerate(() if script.refusal else script.words):
            if number == script.hang_after:
                await asyncio.Event().wait()
            if number == script.break_after:
                raise broken(self._name, "it was told to break off")
            if prompt.max_output_tokens is not None and number >= prompt.max_output_tokens:
                reason = FinishReason.LENGTH
                break
            await asyncio.sleep(script.pace_s)
            ask.stopwatch.heard()
            piece, stopped = _before_stop(written, word, prompt.stop)
            spoken += 1
            if piece:
                yield [TextDelta(part, piece)]
            written += piece
            if stopped:
                reason = FinishReason.STOP_SEQUENCE
                break
        if script.calls and reason is FinishReason.STOP:
            check = CallCheck.of(prompt)
            for name, arguments in script.calls:
                part += 1
                call = OpenCall(part, f"call_{_turn(prompt)}_{part}", name, [arguments])
                yield [
                    check.begun(call),
                    *([ToolCallArguments(part, arguments)] if arguments else []),
                    check.completed(call),
                ]
            reason = FinishReason.TOOL_CALLS
        usage = Usage(input_uncached_tokens=_words_of(prompt), output_tokens=spoken)
        yield [UsageUpdated(usage), Stopped(reason, reason.value)]


def recalled(prompt: Prompt) -> list[str]:
    """The memories that the prompt carries, without their dashes."""
    texts = [prompt.system]
    texts += [part.text for message in prompt.messages for part in message.parts if isinstance(part, Text)]
    lines = [line for text in texts for block in _MEMORIES.findall(text) for line in block.splitlines()]
    return [line.strip()[2:].strip() for line in lines if line.strip().startswith("- ")]


def _script(prompt: Prompt, pace_s: float) -> _Script:
    said = ""
    # Recalled memories may stand in a message of their own, before or after what was said.
    for message in reversed(prompt.messages):
        if message.role is Role.TOOL:
            return _Script(tuple(_WORD.findall(_report(prompt, message))), pace_s=pace_s)
        # Of the recalled memories and of what the caller put around them nothing is an order.
        if message.role is Role.USER and (said := _MEMORIES.sub("", _text(message)).strip()):
            break
    asked: dict[str, str] = {}
    while number := _NUMBER.search(said):
        asked[number[1]] = number[2]
        said = said[: number.start()] + said[number.end() :]
    orders = _ORDER.findall(said)
    asked |= {name: argument.strip() for name, argument in orders}
    calls = tuple(_call(argument) for name, argument in orders if name == "call" and argument.strip())
    text = _answer(prompt, _ORDER.sub("", said).strip())
    if calls:
        text = f"{INTRODUCTION} I call {', '.join(name for name, _ in calls)} as you asked."
    if isinstance(prompt.response_format, JsonFormat):
        text = compact({"rehearsal": text})
    words = tuple(_WORD.findall(text))
    if (length := _number(asked.get("long"), _MAX_WORDS)) is not None:
        words = ("word1", *(f" word{number}" for number in range(2, int(length) + 1)))[: int(length)]
    pace = _number(asked.get("pace"), _MAX_PACE_MS)
    broken_off, hung = _number(asked.get("break"), _MAX_WORDS), _number(asked.get("hang"), _MAX_WORDS)
    return _Script(
        words,
        thought=asked.get("think", ""),
        refusal=asked.get("refuse", ""),
        calls=calls,
        pace_s=pace_s if pace is None else pace / 1000,
        fail=asked.get("fail", ""),
        break_after=None if broken_off is None else int(broken_off),
        hang_after=None if hung is None else int(hung),
    )


def _answer(prompt: Prompt, said: str) -> str:
    memories = [_quoted(memory) for memory in recalled(prompt) if INTRODUCTION not in memory]
    parts = [INTRODUCTION]
    if said:
        parts.append(f"You said: “{_quoted(said)}”")
    if memories:
        parts.append("\n".join(["What was recalled:", *(f"- {memory}" for memory in memories)]))
    else:
        parts.append(NOTHING_RECALLED)
    return "\n".join(parts)


def _quoted(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MAX_QUOTE else f"{text[: _MAX_QUOTE - 1]}…"


def _report(prompt: Prompt, last: Message) -> str:
    names = {
        part.call_id: part.name for message in prompt.messages for part in message.parts if isinstance(part, ToolCall)
    }
    said = [INTRODUCTION]
    for result in last.parts:
        if isinstance(result, ToolResult):
            text = " ".join(part.text for part in result.parts if isinstance(part, Text))
            verb = "failed with" if result.is_error else "answered"
            said.append(f"The tool {names.get(result.call_id, '?')} {verb}: {text}")
    return "\n".join(said)


def _call(argument: str) -> tuple[str, str]:
    name, _, arguments = argument.strip().partition(" ")
    return name[:64], arguments.strip()


def _number(text: str | None, most: float) -> float | None:
    """A directive's number within bounds; None when it is not there or not one."""
    try:
        number = float(text) if text else None
    except ValueError:
        return None
    return number if number is not None and 0 <= number <= most else None


def _before_stop(written: str, piece: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The piece up to the first stop sequence that it completes."""
    whole = written + piece
    ends = [at for stop in stops if (at := whole.find(stop, max(0, len(written) - len(stop) + 1))) >= 0]
    if not ends:
        return piece, False
    return whole[len(written) : max(len(written), min(ends))], True


def _turn(prompt: Prompt) -> int:
    """Calls of different turns must not share ids."""
    return len(prompt.messages)


def _text(message: Message) -> str:
    return "\n".join(part.text for part in message.parts if isinstance(part, Text))


def _words_of(prompt: Prompt) -> int:
    return len(prompt.system.split()) + sum(len(_text(message).split()) for message in prompt.messages)
