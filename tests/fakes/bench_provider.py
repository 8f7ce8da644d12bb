"""A provider that costs almost nothing, for measuring what stands in front of it.

    python -m tests.fakes.bench_provider      prints the port it listens on, ends with its stdin

Speaks Chat Completions over HTTP/1.1 keep-alive, as SSE or, without `"stream": true`, as one JSON
body. The model's name says what to answer: `tokens-200` sends 200 tokens as fast as the reader
takes them, `tokens-200-every-50` one each 50 ms, `tokens-200-apart` is a burst whose tokens are text
and refusal in turn, so that no two of them can be joined. Every token is an event, an HTTP chunk and a write
of its own, as real providers send them; streams take turns, so none gets ahead of the others.

A paced token's text is the time at which it was sent (`time.perf_counter_ns`, one clock for all
processes of a machine), so that whoever receives it knows how long it was under way.
"""

import asyncio
import json
import signal
import sys
import time
from functools import lru_cache
from typing import cast

import uvloop

_SLOT_S = 0.001
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
_DONE = b"data: [DONE]\n\n"
WORD = "token "


def event(model: str, delta: dict[str, str], reason: str | None = None, **more: object) -> bytes:
    """One SSE event with what OpenAI says in each."""
    choices = [] if more else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]
    body = {
        "id": "chatcmpl-bench",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": model,
        "system_fingerprint": "fp_bench",
        "choices": choices,
        **more,
    }
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def chunked(piece: bytes) -> bytes:
    """A piece as an HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


class Script:
    """What a model's name asks for, as bytes that are ready to be sent."""

    def __init__(self, model: str) -> None:
        _, tokens, *pace = model.split("-")
        self.tokens = int(tokens)
        self.every_s = float(pace[1]) / 1000 if pace[:1] == ["every"] else 0.0
        usage = {"prompt_tokens": 12, "completion_tokens": self.tokens, "total_tokens": 12 + self.tokens}
        self.opening = _HEAD + chunked(event(model, {"role": "assistant", "content": ""}))
        word = chunked(event(model, {"content": WORD}))
        refusal = chunked(event(model, {"refusal": WORD}))
        # That of an even number of tokens that are left, and that of an odd one.
        self.words = word, refusal if pace == ["apart"] else word
        # 19 digits and a space stand for the time, so the chunk's length is known beforehand.
        self.before, self.after = chunked(event(model, {"content": "0" * 19 + " "})).split(b"0" * 19)
        self.ending = (
            chunked(event(model, {}, "stop")) + chunked(event(model, {}, usage=usage)) + chunked(_DONE) + b"0\r\n\r\n"
        )
        message = {"role": "assistant", "content": WORD * self.tokens}
        answer = {
            "id": "chatcmpl-bench",
            "object": "chat.completion",
            "created": 1700000000,
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": usage,
        }
        body = json.dumps(answer).encode()
        self.whole = (
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )


script = lru_cache(Script)


class Turns:
    """Lets all streams that want to send do so in turn: bursts one event a turn, paced ones when due."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._bursts: set[Connection] = set()
        self._due: dict[int, list[Connection]] = {}
        self._slot = 0

    def burst(self, connection: "Connection") -> None:
        if not self._bursts:
            self._loop.call_soon(self._turn)
        self._bursts.add(connection)

    def leave(self, connection: "Connection") -> None:
        self._bursts.discard(connection)

    def at(self, when: float, connection: "Connection") -> None:
        slot = max(int(when / _SLOT_S), self._slot + 1)
        if not self._due:
            self._slot = int(self._loop.time() / _SLOT_S)
            self._loop.call_later(_SLOT_S, self._tick)
        self._due.setdefault(slot, []).append(connection)

    def _turn(self) -> None:
        for connection in tuple(self._bursts):
            if not connection.send_word():
                self._bursts.discard(connection)
        if self._bursts:
            self._loop.call_soon(self._turn)

    def _tick(self) -> None:
        now = int(self._loop.time() / _SLOT_S)
        for slot in range(self._slot + 1, now + 1):
            self._slot = slot
            for connection in self._due.pop(slot, ()):
                connection.send_timed()
        if self._due:
            self._loop.call_later(_SLOT_S, self._tick)


class Connection(asyncio.Protocol):
    """One client's connection, a request at a time."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._received = b""
        self._left = 0
        self._next = 0.0
        self._transport: asyncio.Transport
        self._script: Script

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._turns.leave(self)

    def pause_writing(self) -> None:
        self._turns.leave(self)

    def resume_writing(self) -> None:
        if self._left and not self._script.every_s:
            self._turns.burst(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, blank, rest = self._received.partition(b"\r\n\r\n")
        if not blank:
            return
        size = next((int(line[15:]) for line in head.split(b"\r\n") if line[:15].lower() == b"content-length:"), 0)
        if len(rest) >= size:
            self._received = rest[size:]
            self._answer(json.loads(rest[:size]))

    def _answer(self, body: dict[str, object]) -> None:
        self._script = script(str(body["model"]).rpartition("/")[2])
        if not body.get("stream"):
            self._transport.write(self._script.whole)
            return
        self._transport.write(self._script.opening)
        self._left = self._script.tokens
        if self._script.every_s:
            self._next = asyncio.get_running_loop().time()
            self.send_timed()
        else:
            self._turns.burst(self)

    def send_word(self) -> bool:
        """Send the next token of a burst; whether there are more."""
        self._transport.write(self._script.words[self._left % 2])
        self._left -= 1
        if not self._left:
            self._transport.write(self._script.ending)
        return self._left > 0

    def send_timed(self) -> None:
        """Send the next token of a paced stream, with its time."""
        if self._transport.is_closing():
            return
        self._transport.write(b"%b%019d%b" % (self._script.before, time.perf_counter_ns(), self._script.after))
        self._left -= 1
        if not self._left:
            self._transport.write(self._script.ending)
            return
        self._next += self._script.every_s
        self._turns.at(self._next, self)


async def _main() -> None:
    loop = asyncio.get_running_loop()
    turns = Turns(loop)
    server = await loop.create_server(lambda: Connection(turns), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    # The measuring process holds the other end: should it die, this ends as well.
    loop.add_reader(sys.stdin.fileno(), stop.set)
    await stop.wait()
    server.close()


if __name__ == "__main__":
    uvloop.run(_main())
