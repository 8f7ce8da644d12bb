"""Responses as OpenAI writes them, by the same directives as its Chat Completions."""

import json
from collections.abc import Iterator
from typing import Any

from tests.fakes.providers.directives import Directives, Piece, event, fragments, one, played
from tests.fakes.providers.http_server import Reply

ARGUMENTS = '{"city": "Zürich", "days": 3}'
COUNTED = 12
"""Input tokens of every prompt."""

_INCOMPLETE = ("max_output_tokens", "content_filter")


def answer(body: dict[str, Any], orders: Directives) -> Reply:
    """A stream, or one body where that was asked for or ordered."""
    if orders.has("whole") or not body.get("stream"):
        return _json(_answer(orders, body))
    # Both forms of an error event occur.
    said = {"code": "server_error", "message": "The server had an error", "param": None}
    error = event({"type": "error", "error": {"type": "server_error", **said}, "sequence_number": 9}, "error")
    pieces = played(_pieces(orders, body), orders, ping=b": ping\n\n", error=error)
    kind = orders.values.get("type", "text/event-stream; charset=utf-8")
    return Reply(pieces, content_type=kind, chunked=not orders.has("unframed"))


def count(orders: Directives) -> Reply:
    """Every prompt has as many tokens as the answers say."""
    if orders.has("garbage"):
        return _json({"object": "response.input_tokens"})
    return _json({"object": "response.input_tokens", "input_tokens": COUNTED})


def usage(orders: Directives) -> dict[str, Any]:
    """12 tokens of prompt, 4 of them cached."""
    thought = orders.number("think")
    output = len(orders.words()) + thought
    return orders.counted(
        {
            "input_tokens": COUNTED,
            "input_tokens_details": {"cached_tokens": 4},
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": thought},
            "total_tokens": COUNTED + output,
        }
    )


def thought(words: list[str]) -> dict[str, Any]:
    """A reasoning item as it is when it is done."""
    content = [{"type": "reasoning_text", "text": "".join(words)}]
    return {"id": "rs_1", "type": "reasoning", "summary": [], "content": content, "encrypted_content": "ZW5j"}


def call(number: int, name: str) -> dict[str, Any]:
    """A function call as it is when it is done."""
    return {
        "id": f"fc_{number}",
        "type": "function_call",
        "status": "completed",
        "call_id": f"call_{number}",
        "name": name,
        "arguments": ARGUMENTS,
    }


def message(orders: Directives) -> dict[str, Any]:
    """The words of the answer as they are when they are done."""
    text = "".join(orders.words())
    said = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    content = {"type": "refusal", "refusal": text} if orders.has("refuse") else said
    return {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [content]}


def _items(orders: Directives) -> list[dict[str, Any]]:
    first = [thought(orders.words("think", 0))] if orders.number("think") else []
    if orders.has("tools"):
        return [*first, *(call(number, orders.tool) for number in range(orders.number("tools")))]
    return [*first, message(orders)]


def _answer(orders: Directives, body: dict[str, Any], *, begun: bool = False) -> dict[str, Any]:
    word = orders.values.get("finish", "")
    status = "incomplete" if word in _INCOMPLETE else word or "completed"
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": body["model"],
        "status": "in_progress" if begun else status,
        "error": None,
        "incomplete_details": {"reason": word} if status == "incomplete" and not begun else None,
        "output": [] if begun else _items(orders),
        "usage": usage(orders) if orders.number("usage", 1) and not begun else None,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def _pieces(orders: Directives, body: dict[str, Any]) -> Iterator[Piece]:
    numbers = iter(range(1_000_000_000))

    def piece(kind: str, *, word: bool = False, **fields: Any) -> Piece:
        name = f"response.{kind}"
        return Piece(event({"type": name, "sequence_number": next(numbers), **fields}, name), word)

    for kind in ("created", "in_progress"):
        yield piece(kind, response=_answer(orders, body, begun=True))
    for place, item in enumerate(_items(orders)):
        yield piece("output_item.added", output_index=place, item=_empty(item))
        of: dict[str, Any] = {"item_id": item["id"], "output_index": place}
        match item["type"]:
            case "reasoning":
                for word in orders.words("think", 0):
                    yield piece("reasoning_text.delta", word=True, **of, content_index=0, delta=word)
                text = item["content"][0]["text"]
                yield piece("reasoning_text.done", **of, content_index=0, text=text)
            case "function_call":
                for fragment in fragments(ARGUMENTS):
                    yield piece("function_call_arguments.delta", word=True, **of, delta=fragment)
                yield piece("function_call_arguments.done", **of, arguments=ARGUMENTS)
            case "message":
                of["content_index"] = 0
                part = item["content"][0]
                kind, key = ("refusal", "refusal") if orders.has("refuse") else ("output_text", "text")
                yield piece("content_part.added", **of, part={**part, key: ""})
                for word in orders.words():
                    yield piece(f"{kind}.delta", word=True, **of, delta=word, logprobs=_logprobs(orders, word, body))
                yield piece(f"{kind}.done", **of, **{key: part[key]})
                yield piece("content_part.done", **of, part=part)
        yield piece("output_item.done", output_index=place, item=item)
    if orders.number("done", 1):
        whole = _answer(orders, body)
        yield piece(whole["status"], response=whole)


def _logprobs(orders: Directives, word: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """One token a word, and as many others in its place as were asked for."""
    if "message.output_text.logprobs" not in body.get("include", ()) and not orders.has("unasked"):
        return []
    others = [{"token": f"other{rank}", "logprob": -1.0 - rank} for rank in range(body.get("top_logprobs", 0))]
    return [{"token": word, "logprob": -0.25, "top_logprobs": others}]


def _empty(item: dict[str, Any]) -> dict[str, Any]:
    """An item as it is when it begins."""
    blank = {"arguments": "", "content": [], "encrypted_content": None, "status": "in_progress"}
    return {key: blank.get(key, value) for key, value in item.items()}


def _json(body: Any) -> Reply:
    return Reply(one(json.dumps(body, ensure_ascii=False).encode()), content_type="application/json")
