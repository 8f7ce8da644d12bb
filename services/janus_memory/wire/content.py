"""Messages: what of them is valid, searched, counted and paired."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from janus_api.content.v1 import message_pb2 as content
from janus_kit.validate import Violations
from janus_memory.window import message_tokens

MiB = 1024 * 1024
_MAX_TEXT = MiB
MOST_PARTS = 1024
_MAX_MEDIA = 3 * MiB
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


@dataclass(frozen=True)
class MessageFacts:
    """What memory needs to know about a message."""

    text: str
    tokens: int
    calls: tuple[str, ...]
    results: tuple[str, ...]


def count_parts(check: Violations, path: str, message: content.Message) -> int | None:
    """Parts of a message, those of tool results included; None when they are too many, which is reported."""
    if not check.count(f"{path}.parts", message.parts, at_most=MOST_PARTS):
        return None
    total, few = len(message.parts), True
    for place, part in enumerate(message.parts):
        inner = part.tool_result.parts
        total += len(inner)
        few = few and len(inner) <= 64
        if len(inner) > 64:
            check.count(f"{path}.parts[{place}].tool_result.parts", inner, at_most=64)
    return total if few else None


def check_message(check: Violations, path: str, message: content.Message) -> None:
    """Every documented rule of a message, under a field path, but for too many parts: see count_parts."""
    check.specified(f"{path}.role", message.role, content.Role.values())
    check.require(len(message.parts) > 0, f"{path}.parts", f"must have 1 to {MOST_PARTS} items")
    check.length(f"{path}.name", message.name, at_most=128)
    check.id(f"{path}.id", message.id, optional=True)
    for place, part in enumerate(message.parts):
        where = f"{path}.parts[{place}]"
        _check_part(check, where, part)
        if message.role == content.ROLE_TOOL and part.WhichOneof("kind") != "tool_result":
            # A model could never be given a window with it.
            check.add(where, "must be a tool result in a ROLE_TOOL message")


def facts(message: content.Message) -> MessageFacts:
    """Searched text, estimated tokens and tool call ids of a valid message.

    Searched is what was said or answered: text, refusals and text in tool
    results; neither reasoning nor arguments of calls.
    """
    searched: list[str] = []
    counted: list[str] = []
    calls: list[str] = []
    results: list[str] = []
    attachments = 0
    for part in message.parts:
        kind = part.WhichOneof("kind")
        if kind == "tool_call":
            calls.append(part.tool_call.call_id)
            counted.append(f"{part.tool_call.name} {part.tool_call.arguments_json}")
        elif kind == "tool_result":
            results.append(part.tool_result.call_id)
            texts = [inner.text for inner in part.tool_result.parts if inner.text]
            searched.extend(texts)
            counted.extend(texts)
            attachments += sum(
                inner.WhichOneof("kind") in {"image", "audio", "document"} for inner in part.tool_result.parts
            )
        elif kind == "reasoning":
            counted.append(part.reasoning.text or part.reasoning.summary)
        elif kind in {"image", "audio", "document"}:
            attachments += 1
        elif kind == "text":
            searched.append(part.text)
            counted.append(part.text)
        elif kind == "refusal":
            searched.append(part.refusal)
            counted.append(part.refusal)
    return MessageFacts("\n".join(searched), message_tokens(counted, attachments), tuple(calls), tuple(results))


def leave_out_bytes(parts: Iterable[content.Part]) -> None:
    """Clear what is not text: bytes of media, opaque blocks, and what only an issuer reads of reasoning and sources."""
    for part in parts:
        kind = part.WhichOneof("kind")
        if kind == "image":
            part.image.ClearField("data")
        elif kind == "audio":
            part.audio.ClearField("data")
        elif kind == "document":
            part.document.media.ClearField("data")
        elif kind == "opaque":
            part.opaque.ClearField("data")
        elif kind == "reasoning":
            part.reasoning.ClearField("redacted")
            part.reasoning.ClearField("signature")
        elif kind == "citation":
            part.citation.ClearField("data")
        elif kind == "tool_result":
            leave_out_bytes(part.tool_result.parts)


def _check_part(check: Violations, path: str, part: content.Part) -> None:
    kind = part.WhichOneof("kind")
    if kind is None:
        check.add(path, "must be set to one of its kinds")
    elif kind == "text":
        _check_text(check, f"{path}.text", part.text, _MAX_TEXT)
    elif kind == "refusal":
        _check_text(check, f"{path}.refusal", part.refusal, 64 * 1024)
    elif kind in {"image", "audio"}:
        _check_media(check, f"{path}.{kind}", part.image if kind == "image" else part.audio)
    elif kind == "document":
        _check_media(check, f"{path}.document.media", part.document.media)
        check.length(f"{path}.document.title", part.document.title, at_most=256)
    elif kind == "tool_call":
        call = part.tool_call
        check.length(f"{path}.tool_call.call_id", call.call_id, at_least=1, at_most=128)
        check.require(
            _TOOL_NAME.fullmatch(call.name) is not None,
            f"{path}.tool_call.name",
            "must be 1 to 64 characters of letters, digits, '_', '.' and '-'",
        )
        _check_text(check, f"{path}.tool_call.arguments_json", call.arguments_json, 256 * 1024)
    elif kind == "tool_result":
        result = part.tool_result
        check.length(f"{path}.tool_result.call_id", result.call_id, at_least=1, at_most=128)
        for place, inner in enumerate(result.parts):
            inside = f"{path}.tool_result.parts[{place}]"
            allowed = inner.WhichOneof("kind") in {"text", "image", "document"}
            if check.require(allowed, inside, "must be text, an image or a document"):
                _check_part(check, inside, inner)
    elif kind == "citation":
        citation = part.citation
        check.require(citation.start >= 0, f"{path}.citation.start", "must not be negative")
        check.require(citation.end >= citation.start, f"{path}.citation.end", "must not be before the start")


def _check_text(check: Violations, path: str, text: str, max_bytes: int) -> None:
    check.require("\x00" not in text, path, "must not contain NUL characters")
    # Four bytes a character at most: short texts need not be encoded to be measured.
    if len(text) * 4 > max_bytes:
        check.require(len(text.encode()) <= max_bytes, path, f"must be at most {max_bytes} bytes of UTF-8")


def _check_media(check: Violations, path: str, media: content.Media) -> None:
    source = media.WhichOneof("source")
    check.require(source is not None, path, "must have data or a uri")
    check.length(f"{path}.mime_type", media.mime_type, at_least=int(source == "data"), at_most=128)
    check.size(f"{path}.data", media.data, at_most=_MAX_MEDIA)
    check.length(f"{path}.uri", media.uri, at_most=2_048)
    if source == "uri":
        check.require(media.uri.startswith("https://"), f"{path}.uri", "must be an https URL")
