"""Chat Completions and embeddings as OpenAI writes them, with its Responses beside them."""

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

from tests.fakes.providers import openai_responses_wire
from tests.fakes.providers.directives import (
    Directives,
    Piece,
    error_reply,
    event,
    fragments,
    one,
    played,
    silence,
)
from tests.fakes.providers.http_server import Reply, Request

ARGUMENTS = '{"city": "Zürich", "days": 3}'
_CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}


def application(request: Request) -> Reply:
    """Answers by the directives in the model's name."""
    body = request.json
    orders = Directives.of(body["model"])
    if orders.has("silent"):
        return Reply(silence(), chunked=False)
    if orders.has("status"):
        code = orders.values.get("code", _CODES.get(orders.number("status"), ""))
        text = f"Incorrect key {request.headers.get('authorization', '')} for the prompt {body}"
        return error_reply(
            orders, {"error": {"message": text, "type": "invalid_request_error", "code": code, "param": None}}
        )
    if request.path.endswith("/responses/input_tokens"):
        return openai_responses_wire.count(orders)
    if request.path.endswith("/responses"):
        return openai_responses_wire.answer(body, orders)
    if request.path.endswith("/embeddings"):
        return Reply(one(_embeddings(body, orders)), content_type="application/json")
    if orders.has("whole") or not body.get("stream"):
        return Reply(one(as_json(_answer(orders, body))), content_type="application/json")
    error = event({"error": {"message": "The server had an error", "type": "server_error", "code": None}})
    pieces = played(_chunks(orders, body), orders, ping=b": ping\n\n", error=error)
    kind = orders.values.get("type", "text/event-stream; charset=utf-8")
    return Reply(pieces, content_type=kind, chunked=not orders.has("unframed"))


def usage(orders: Directives) -> dict[str, Any]:
    """12 tokens of prompt, 4 of them cached."""
    thought, said = orders.number("think"), len(orders.words())
    return orders.counted(
        {
            "prompt_tokens": 12,
            "completion_tokens": said + thought,
            "total_tokens": 12 + said + thought,
            "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": thought},
        }
    )


def as_json(body: Any) -> bytes:
    """A body that is one JSON text."""
    return json.dumps(body, ensure_ascii=False).encode()


def _reason(orders: Directives) -> str:
    return orders.values.get("finish", "tool_calls" if orders.has("tools") else "stop")


def _chunks(orders: Directives, body: dict[str, Any]) -> Iterator[Piece]:
    def chunk(delta: dict[str, Any], reason: str | None = None, usage: dict[str, int] | None = None) -> bytes:
        wanted = body.get("logprobs") or orders.has("unasked")
        tokens = _logprobs(delta["content"], body) if wanted and delta.get("content") else None
        choice = {"index": 0, "delta": delta, "logprobs": tokens, "finish_reason": reason}
        return event({**head, "choices": [choice], "usage": usage})

    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
    yield Piece(chunk({"role": "assistant", "content": "", "refusal": None}))
    for word in orders.words("think", 0):
        yield Piece(chunk({"reasoning_content": word}), word=True)
    for number in range(orders.number("tools")):
        opened = {"index": number, "id": f"call_{number}", "type": "function"}
        yield Piece(chunk({"tool_calls": [{**opened, "function": {"name": orders.tool, "arguments": ""}}]}))
        for piece in fragments(ARGUMENTS):
            delta = {"tool_calls": [{"index": number, "function": {"arguments": piece}}]}
            yield Piece(chunk(delta), word=True)
    if not orders.has("tools"):
        key = "refusal" if orders.has("refuse") else "content"
        for number, word in enumerate(orders.words(), 1):
            so_far = {"prompt_tokens": 1000, "completion_tokens": 50 * number} if orders.has("counting") else None
            yield Piece(chunk({key: word}, usage=so_far), word=True)
    yield Piece(chunk({}, _reason(orders)))
    wanted = (body.get("stream_options") or {}).get("include_usage")
    if wanted and orders.number("usage", 1):
        yield Piece(event({**head, "choices": [], "usage": usage(orders)}))
    if orders.number("done", 1):
        yield Piece(event("[DONE]"))


def _logprobs(word: str, body: dict[str, Any]) -> dict[str, Any]:
    """One token a word, and as many others in its place as were asked for."""
    others = body.get("top_logprobs", 0)
    top = [{"token": f"other{rank}", "logprob": -1.0 - rank, "bytes": None} for rank in range(others)]
    token = {"token": word, "logprob": -0.25, "bytes": list(word.encode()), "top_logprobs": top}
    return {"content": [token], "refusal": None}


def _answer(orders: Directives, body: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": "".join(orders.words()), "refusal": None}
    if orders.has("tools"):
        function = {"name": orders.tool, "arguments": ARGUMENTS}
        message |= {
            "content": None,
            "tool_calls": [
                {"id": f"call_{number}", "type": "function", "function": function}
                for number in range(orders.number("tools"))
            ],
        }
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": _reason(orders)}],
        "usage": usage(orders),
    }


def _embeddings(body: dict[str, Any], orders: Directives) -> bytes:
    """Each vector says how long its text is, so that a test can tell them apart."""
    size = orders.number("dimensions", body.get("dimensions", 3))
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    rows = []
    for index, text in enumerate(texts[: len(texts) - orders.number("missing")]):
        values = [float(len(text)), *([0.5] * (size - 1))]
        if orders.has("nan"):
            values[0] = float("nan")
        packed = base64.b64encode(struct.pack(f"<{size}f", *values)).decode()
        vector = packed if body.get("encoding_format") == "base64" else values
        rows.append({"object": "embedding", "index": index, "embedding": vector})
    rows.reverse()  # the order is in the index, not in the list
    said = orders.counted({"prompt_tokens": 5, "total_tokens": 5})
    usage = {"usage": said} if orders.number("usage", 1) else {}
    return as_json({"object": "list", "data": rows, "model": body["model"], **usage})
