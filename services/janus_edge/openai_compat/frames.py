"""Events of a generation as the server-sent events of a streamed chat completion.

Pure: bytes out, no input or output. A frame is a prefix that is the same for
the whole stream, a few bytes of delta, and a suffix. All text is escaped to
ASCII, so that no character of it (CR, LF, U+0085, U+2028, …) can end a line of
the event stream, whatever a client takes for a line end.
"""

import json
from json.encoder import encode_basestring_ascii as _text

from janus_api.inference.v1 import event_pb2 as pb
from janus_edge.openai_compat.answer import completion_id, finish_reason, usage

DONE = b"data: [DONE]\n\n"
_SEMANTIC_FREE = frozenset({"started", "route_changed", "usage"})


def is_semantic(event: pb.GenerationEvent) -> bool:
    """Whether the event is part of an answer: before the first, a failure is still an HTTP status."""
    return event.WhichOneof("event") not in _SEMANTIC_FREE


class Frames:
    """The frames of one stream, in the order of its events."""

    def __init__(self, created: int, *, include_usage: bool) -> None:
        self._created = created
        self._include_usage = include_usage
        self._id = ""
        self._model = ""
        self._prefix = b""
        # OpenAI sends an explicit null on every chunk when usage was asked for.
        null_usage = b',"usage":null' if include_usage else b""
        self._suffix = b',"logprobs":null,"finish_reason":null}]' + null_usage + b"}\n\n"
        self._calls: dict[int, int] = {}
        self._whole_arguments: set[int] = set()

    def announce(self, event: pb.GenerationEvent) -> None:
        """Take note of who answers; these events come before any frame."""
        match event.WhichOneof("event"):
            case "started":
                self._id = completion_id(event.started.generation_id)
                self._model = f"{event.started.provider}/{event.started.model}"
            case "route_changed":
                self._model = event.route_changed.to

    def open(self) -> bytes:
        """The first frame: the role."""
        self._prefix = (
            f'data: {{"id":{_text(self._id)},"object":"chat.completion.chunk","created":{self._created},'
            f'"model":{_text(self._model)},"choices":[{{"index":0,"delta":'
        ).encode()
        return self._delta('{"role":"assistant","content":"","refusal":null}')

    def frame(self, event: pb.GenerationEvent) -> bytes:
        """The event's frames; empty when Chat Completions has no words for it."""
        kind = event.WhichOneof("event")
        if kind == "text_delta":
            return self._delta(f'{{"content":{_text(event.text_delta.text)}}}')
        match kind:
            case "tool_call_started":
                started = event.tool_call_started
                return self._call_started(started.part_index, started.call_id, started.name)
            case "tool_call_arguments_delta":
                delta = event.tool_call_arguments_delta
                self._whole_arguments.discard(delta.part_index)
                return self._arguments(delta.part_index, delta.fragment)
            case "tool_call_completed":
                return self._call_completed(event.tool_call_completed)
            case "refusal_delta":
                return self._delta(f'{{"refusal":{_text(event.refusal_delta.text)}}}')
            case "finished":
                return self._finish(event.finished)
        return b""

    def _delta(self, delta: str) -> bytes:
        return self._prefix + delta.encode() + self._suffix

    def _call_started(self, part_index: int, call_id: str, name: str) -> bytes:
        number = self._calls.setdefault(part_index, len(self._calls))
        self._whole_arguments.add(part_index)
        return self._delta(
            f'{{"tool_calls":[{{"index":{number},"id":{_text(call_id)},"type":"function",'
            f'"function":{{"name":{_text(name)},"arguments":""}}}}]}}'
        )

    def _arguments(self, part_index: int, fragment: str) -> bytes:
        number = self._calls.get(part_index, 0)
        return self._delta(f'{{"tool_calls":[{{"index":{number},"function":{{"arguments":{_text(fragment)}}}}}]}}')

    def _call_completed(self, completed: pb.ToolCallCompleted) -> bytes:
        """Nothing, unless the call came in one piece: then what its deltas would have said."""
        index, call, frames = completed.part_index, completed.call, b""
        if index not in self._calls:
            frames = self._call_started(index, call.call_id, call.name)
        if index in self._whole_arguments:
            self._whole_arguments.discard(index)
            frames += self._arguments(index, call.arguments_json)
        return frames

    def _finish(self, finished: pb.GenerationFinished) -> bytes:
        reason = _text(finish_reason(finished.reason)).encode()
        frames = self._prefix + b"{}" + self._suffix.replace(b'"finish_reason":null', b'"finish_reason":' + reason)
        if self._include_usage:
            frames += (
                f'data: {{"id":{_text(self._id)},"object":"chat.completion.chunk","created":{self._created},'
                f'"model":{_text(self._model)},"choices":[],"usage":{json.dumps(usage(finished.usage))}}}\n\n'
            ).encode()
        return frames + DONE


def error_frame(body: dict[str, dict[str, object]]) -> bytes:
    """A failure after the answer began; no `[DONE]` follows it."""
    return f"data: {json.dumps(body)}\n\n".encode()
