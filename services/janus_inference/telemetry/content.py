"""Prompts and answers in the GenAI conventions' form, for spans that may hold them.

Messages are JSON: `[{"role": …, "parts": [{"type": "text", "content": …}]}]`.
Bytes of media and providers' own blocks are left out. Each attribute has at
most ``MOST_BYTES``; what is over that is cut, the oldest first, and the
attribute's name is in `janus.content.cut`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from janus_inference.events import (
    FinishReason,
    ProviderEvent,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    ToolCallCompleted,
)
from janus_inference.model import (
    Audio,
    Document,
    Image,
    Message,
    Part,
    Prompt,
    Reasoning,
    Refusal,
    Text,
    ToolCall,
    ToolResult,
)
from janus_kit.telemetry import names
from janus_kit.telemetry.tracing import AttributeValue

MOST_BYTES = 65_536
_CUT = " […]"

Json = dict[str, Any]


def asked(prompt: Prompt) -> Mapping[str, AttributeValue]:
    """What was asked."""
    found: dict[str, Sequence[Json]] = {
        names.GEN_AI_INPUT_MESSAGES: [_message(message) for message in prompt.messages],
    }
    if prompt.system:
        found[names.GEN_AI_SYSTEM_INSTRUCTIONS] = [{"type": "text", "content": prompt.system}]
    attributes = _attributes(found)
    if prompt.stop:
        attributes[names.GEN_AI_REQUEST_STOP_SEQUENCES] = prompt.stop
    return attributes


class Said:
    """What a model answers, collected event by event, up to ``MOST_BYTES``."""

    def __init__(self) -> None:
        self._parts: dict[int, Json] = {}
        self._room = MOST_BYTES
        self._is_cut = False

    def add(self, event: ProviderEvent) -> None:
        """The next event."""
        match event:
            case TextDelta(part_index=index, text=text):
                self._extend(index, "text", text)
            case RefusalDelta(part_index=index, text=text):
                self._extend(index, "refusal", text)
            case ReasoningDelta(part_index=index, text=str(text)) | ReasoningDelta(part_index=index, summary=str(text)):
                self._extend(index, "reasoning", text)
            case ToolCallCompleted(part_index=index, call=call):
                self._room -= len(call.arguments_json)
                if self._room >= 0:
                    self._parts[index] = _call(call)
                else:
                    self._room, self._is_cut = 0, True

    def attributes(self, reason: FinishReason | None) -> Mapping[str, AttributeValue]:
        """What was answered; ``reason`` is None when the answer is not whole."""
        parts = [self._told(self._parts[index]) for index in sorted(self._parts)]
        message = {"role": "assistant", "parts": parts, "finish_reason": reason.value if reason else "error"}
        return _attributes({names.GEN_AI_OUTPUT_MESSAGES: [message]}, is_cut=self._is_cut)

    def _extend(self, index: int, kind: str, text: str) -> None:
        if len(text) > self._room:
            self._is_cut = True
            text = text[: self._room]
        self._room -= len(text)
        if text:
            self._parts.setdefault(index, {"type": kind, "content": []})["content"].append(text)

    @staticmethod
    def _told(part: Json) -> Json:
        return part | {"content": "".join(part["content"])} if "content" in part else part


def _attributes(found: Mapping[str, Sequence[Json]], *, is_cut: bool = False) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {}
    cut = []
    for name, items in found.items():
        text, was_cut = _bounded(items)
        attributes[name] = text
        if was_cut or is_cut:
            cut.append(name)
    if cut:
        attributes[names.CONTENT_CUT] = cut
    return attributes


def _bounded(items: Sequence[Json]) -> tuple[str, bool]:
    """JSON of the newest items that fit, and whether anything is missing."""
    kept: list[str] = []
    room = MOST_BYTES - len("[]")
    is_cut = False
    for item in reversed(items):
        text = _dumped(item)
        if _size(text) > room:
            is_cut = True
            shorter = _fitting(item, room)
            kept += [shorter] if shorter is not None else []
            break
        kept.append(text)
        room -= _size(text) + len(",")
    return f"[{','.join(reversed(kept))}]", is_cut


def _fitting(item: Json, room: int) -> str | None:
    """The item, its texts made as short as it takes; None when that does not help."""
    longest = room
    while longest > 0:
        text = _dumped(_clipped(item, longest))
        if _size(text) <= room:
            return text
        longest //= 2
    return None


def _clipped(value: Any, longest: int) -> Any:
    match value:
        case str() if len(value) > longest:
            return value[:longest] + _CUT
        case Mapping():
            return {key: _clipped(each, longest) for key, each in value.items()}
        case list():
            return [_clipped(each, longest) for each in value]
    return value


def _dumped(item: Json) -> str:
    """JSON. Half a surrogate pair, which a model may write, is replaced: no exporter can send it."""
    return json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace").decode()


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _message(message: Message) -> Json:
    named = {"name": message.name} if message.name else {}
    return {"role": message.role.value, **named, "parts": list(_parts(message.parts))}


def _parts(parts: Sequence[Part]) -> Iterator[Json]:
    for part in parts:
        match part:
            case Text(text=text):
                yield {"type": "text", "content": text}
            case Refusal(text=text):
                yield {"type": "refusal", "content": text}
            case Reasoning(text=str(text)) | Reasoning(summary=str(text)):
                yield {"type": "reasoning", "content": text}
            case ToolCall():
                yield _call(part)
            case ToolResult():
                yield {"type": "tool_call_response", "id": part.call_id, "response": list(_parts(part.parts))}
            case Image() | Audio() | Document():
                yield _media(part)


def _media(part: Image | Audio | Document) -> Json:
    """What it is and where; never the bytes, nor an address that holds them."""
    about = {"modality": type(part).__name__.lower(), "mime_type": part.media.mime_type}
    uri = part.media.uri
    if uri is None or uri[:5].lower() == "data:":
        return {"type": "blob", **about}
    return {"type": "uri", **about, "uri": uri}


def _call(call: ToolCall) -> Json:
    return {"type": "tool_call", "id": call.call_id, "name": call.name, "arguments": call.arguments_json}
