"""What a run is to do, written into its user's message, and the provider that has it done.

The answer depends on the conversation alone, so that a model call which is made again asks for the
very same tool calls: one that had run already would be found to have run twice.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from tests.fakes.providers.directives import event
from tests.fakes.providers.http_server import Reply, Request

TOOLS = ("once", "again", "peek")


@dataclass(frozen=True)
class PlannedCall:
    """A tool call that the model will ask for; ``word`` is in the worker's log for each time that it ran."""

    id: str
    tool: str
    word: str
    seconds: float

    @property
    def arguments(self) -> str:
        return json.dumps({"word": self.word, "seconds": self.seconds})


@dataclass(frozen=True)
class Plan:
    """Answers that ask for tools, then one of so many words."""

    word: str
    rounds: tuple[tuple[str, ...], ...]
    words: int

    @classmethod
    def by_chance(cls, word: str, dice: random.Random) -> Plan:
        """A third are plain; the others call up to four tools at once, up to three times."""
        rounds = dice.choice((0, 1, 1, 2, 2, 3)) if dice.random() < 0.7 else 0
        return cls(
            word,
            tuple(tuple(dice.choices(TOOLS, k=dice.randint(1, 4))) for _ in range(rounds)),
            dice.randint(3, 40),
        )

    @classmethod
    def read(cls, text: str) -> Plan:
        found = json.loads(text)
        return cls(found["word"], tuple(map(tuple, found["rounds"])), found["words"])

    @property
    def text(self) -> str:
        return json.dumps(asdict(self))

    @cached_property
    def calls(self) -> tuple[tuple[PlannedCall, ...], ...]:
        dice = random.Random(self.word)
        return tuple(
            tuple(
                PlannedCall(f"c{number}-{place}", tool, f"{self.word}.{number}.{place}", round(dice.random() * 0.6, 2))
                for place, tool in enumerate(tools)
            )
            for number, tools in enumerate(self.rounds)
        )

    @property
    def pieces(self) -> list[str]:
        return [f"{self.word}:{number} " for number in range(self.words)]


def application(request: Request) -> Reply:
    """Chat Completions of a model that does what the newest user's message plans."""
    body = request.json
    messages = body["messages"]
    newest = max(place for place, message in enumerate(messages) if message["role"] == "user")
    plan = Plan.read(_text(messages[newest]["content"]))
    done = sum(message["role"] == "assistant" for message in messages[newest:])
    return Reply(_answer(plan, done, body["model"]), content_type="text/event-stream; charset=utf-8")


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


async def _answer(plan: Plan, done: int, model: str) -> AsyncIterator[bytes]:
    dice = random.Random(f"{plan.word} {done}")
    pause = dice.random() * 0.04

    def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return event({**head, "choices": [choice]})

    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model}
    yield chunk({"role": "assistant", "content": "", "refusal": None})
    if done < len(plan.calls):
        for place, call in enumerate(plan.calls[done]):
            await asyncio.sleep(pause)
            asked = {"name": call.tool, "arguments": call.arguments}
            yield chunk({"tool_calls": [{"index": place, "id": call.id, "type": "function", "function": asked}]})
        yield chunk({}, "tool_calls")
    else:
        for piece in plan.pieces:
            await asyncio.sleep(pause)
            yield chunk({"content": piece})
        yield chunk({}, "stop")
    yield event({**head, "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}})
    yield event("[DONE]")
