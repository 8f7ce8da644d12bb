"""Messages as Anthropic writes them."""

import json
from collections.abc import Iterator
from typing import Any

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

ARGUMENTS = {"city": "Zürich", "days": 3}
SIGNATURE = "c2lnbmVkIQ=="
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}


def application(request: Request) -> Reply:
    """Answers by the directives in the model's name."""
    body = request.json
    orders = Directives.of(body["model"])
    if orders.has("silent"):
        return Reply(silence(), chunked=False)
    if orders.has("status"):
        kind = orders.values.get("code", _TYPES.get(orders.number("status"), "api_error"))
        text = f"bad key {request.headers.get('x-api-key', '')} for {body}"
        return error_reply(orders, {"type": "error", "error": {"type": kind, "message": text}})
    if request.path.endswith("/count_tokens"):
        counted = "none" if orders.has("garbage") else len(request.body.split())
        return Reply(one(json.dumps({"input_tokens": counted}).encode()), content_type="application/json")
    if orders.has("whole") or not body.get("stream"):
        text = json.dumps(_message(orders, body), ensure_ascii=False)
        return Reply(one(text.encode()), content_type="application/json")
    overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    pieces = played(
        _events(orders, body),
        orders,
        ping=event({"type": "ping"}, "ping"),
        error=event(overloaded, "error"),
    )
    kind = orders.values.get("type", "text/event-stream; charset=utf-8")
    return Reply(pieces, content_type=kind, chunked=not orders.has("unframed"))


def usage(orders: Directives, output: int) -> dict[str, Any]:
    """8 tokens of prompt that were neither read from nor written to the cache, 4 read, 2 written."""
    return orders.counted(
        {
            "input_tokens": 8,
            "cache_read_input_tokens": 4,
            "cache_creation_input_tokens": 2,
            "output_tokens": output,
        }
    )


def _reason(orders: Directives) -> str:
    return orders.values.get("finish", "tool_use" if orders.has("tools") else "end_turn")


def _events(orders: Directives, body: dict[str, Any]) -> Iterator[Piece]:
    def say(kind: str, *, word: bool = False, **values: Any) -> Piece:
        return Piece(event({"type": kind, **values}, kind), word=word)

    def block(start: dict[str, Any], deltas: list[dict[str, Any]]) -> Iterator[Piece]:
        nonlocal index
        yield say("content_block_start", index=index, content_block=start)
        for delta in deltas:
            yield say("content_block_delta", word=True, index=index, delta=delta)
        yield say("content_block_stop", index=index)
        index += 1

    index = 0
    message = {**_message(orders, body), "content": [], "stop_reason": None, "usage": usage(orders, 1)}
    yield say("message_start", message=message)
    yield say("ping")
    if orders.has("think"):
        thoughts = [{"type": "thinking_delta", "thinking": word} for word in orders.words("think")]
        signed = {"type": "signature_delta", "signature": SIGNATURE}
        yield from block({"type": "thinking", "thinking": "", "signature": ""}, [*thoughts, signed])
    for number in range(orders.number("tools")):
        text = json.dumps(ARGUMENTS, ensure_ascii=False)
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in ["", *fragments(text)]]
        start = {"type": "tool_use", "id": f"toolu_{number}", "name": orders.tool, "input": {}}
        yield from block(start, deltas)
    if not orders.has("tools"):
        words = [{"type": "text_delta", "text": word} for word in orders.words()]
        yield from block({"type": "text", "text": ""}, words)
    said = usage(orders, len(orders.words())) if orders.number("usage", 1) else {}
    delta = {"stop_reason": _reason(orders), "stop_sequence": None}
    yield say("message_delta", delta=delta, usage=said)
    if orders.number("done", 1):
        yield say("message_stop")


def _message(orders: Directives, body: dict[str, Any]) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": "".join(orders.words())}]
    if orders.has("tools"):
        content = [
            {"type": "tool_use", "id": f"toolu_{number}", "name": orders.tool, "input": ARGUMENTS}
            for number in range(orders.number("tools"))
        ]
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": content,
        "stop_reason": _reason(orders),
        "stop_sequence": None,
        "usage": usage(orders, len(orders.words())),
    }
