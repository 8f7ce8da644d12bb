"""What a test asks a fake provider to do, written into the model's name.

``fake;tokens=5;pace=10;status=429;retry-after=2`` and the like:

- ``tokens=N`` words in the answer (default 3), ``pace=MS`` between them,
  ``ttft=MS`` before the first;
- ``status=N`` an error of that status, with ``code=WORD``, ``retry-after=S``,
  ``retry-after-ms=MS``, ``should-retry=true``;
- ``cut=N`` reset the connection after N words, ``end=N`` close it in order
  after N words, ``hang=N`` fall silent after N words but for pings, ``silent=1``
  accept the connection and say nothing, not even headers;
- ``error=N`` an error event after N words, ``garbage=N`` bytes that are no JSON
  after N words, ``line=BYTES`` one event of that size after the first word;
- ``tools=N`` call N tools, named ``tool=NAME`` (default weather), ``think=N`` think N words first, ``refuse=1``;
- ``finish=WORD`` the reason to stop; ``usage=0`` leave the usage out, ``uncounted=zeros|total|nonsense`` put
  nothing into it that can be used, ``counting=1`` say it with every word (Chat Completions);
- ``unasked=1`` log-probabilities that nobody asked for;
- ``type=MIME`` another content type; ``whole=1`` one JSON body, not a stream;
- ``done=0`` leave the terminal marker out; ``unframed=1`` a body that ends
  with the connection, so that an early end looks orderly.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.fakes.providers.http_server import Cut, HalfClose, Reply


@dataclass(frozen=True)
class Piece:
    """Bytes of a stream; ``word`` when they carry one word of the answer."""

    data: bytes
    word: bool = False


@dataclass(frozen=True)
class Directives:
    """The parsed orders of one request."""

    values: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: str) -> "Directives":
        orders = [order.partition("=") for order in model.split(";")[1:]]
        return cls({name: value for name, _, value in orders})

    def number(self, name: str, default: int = 0) -> int:
        return int(self.values.get(name, default))

    def has(self, name: str) -> bool:
        return name in self.values

    @property
    def tool(self) -> str:
        return self.values.get("tool", "weather")

    def counted(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The usage, unless it was ordered to say nothing."""
        match self.values.get("uncounted"):
            case "zeros":
                return dict.fromkeys(usage, 0)
            case "total":
                return {"total_tokens": 15}
            case "nonsense":
                return {name: -5 if "output" in name or "completion" in name else 1e30 for name in usage}
        return usage

    def words(self, name: str = "tokens", default: int = 3) -> list[str]:
        """So many words, each but the first with a space before it; the odd one has an accent."""
        count = self.number(name, default)
        return [f"{' ' if number else ''}wörd{number}" for number in range(count)]


def error_reply(orders: Directives, body: Any) -> Reply:
    """The refusal that was ordered."""
    headers = {
        header: orders.values[order]
        for order, header in (
            ("retry-after", "retry-after"),
            ("retry-after-ms", "retry-after-ms"),
            ("should-retry", "x-should-retry"),
        )
        if orders.has(order)
    }
    return Reply(
        one(json.dumps(body).encode()),
        status=orders.number("status"),
        content_type="application/json",
        headers=headers,
    )


async def one(data: bytes) -> AsyncIterator[bytes]:
    """A body in one piece."""
    yield data


async def silence() -> AsyncIterator[bytes]:
    """No body, ever."""
    await asyncio.Event().wait()
    yield b""


async def played(pieces: Iterable[Piece], orders: Directives, *, ping: bytes, error: bytes) -> AsyncIterator[bytes]:
    """The pieces, with what was ordered between them."""
    words = 0
    for piece in pieces:
        if piece.word:
            await _disturb(words, orders)
            if orders.has("hang") and words == orders.number("hang"):
                while True:
                    yield ping
                    await asyncio.sleep(0.02)
            if orders.has("error") and words == orders.number("error"):
                yield error
                return
            if orders.has("garbage") and words == orders.number("garbage"):
                yield b'data: {"oh": no\n\n'
            if orders.has("line") and words == 1:
                for _ in range(orders.number("line") // 65_536 + 1):
                    yield b"x" * 65_536
            words += 1
        yield piece.data
    await _disturb(words, orders)


async def _disturb(words: int, orders: Directives) -> None:
    if orders.has("cut") and words == orders.number("cut"):
        raise Cut
    if orders.has("end") and words == orders.number("end"):
        raise HalfClose
    if words == 0 and orders.has("ttft"):
        await asyncio.sleep(orders.number("ttft") / 1000)
    elif orders.has("pace"):
        await asyncio.sleep(orders.number("pace") / 1000)


def event(data: Any, name: str = "") -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n" if name else ""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"{head}data: {text}\n\n".encode()


def fragments(text: str, size: int = 4) -> Sequence[str]:
    """The text in small pieces, as models write arguments."""
    return [text[at : at + size] for at in range(0, len(text), size)]
