"""The `system` and `messages` of a Messages request: a conversation as blocks, in turns."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from janus_inference.dialects import call_ids, schemas
from janus_inference.dialects.anthropic_citations import sources
from janus_inference.dialects.breakpoints import MOST_BREAKPOINTS, last_breakpoints
from janus_inference.dialects.capabilities import malformed, unsupported, unsupported_part
from janus_inference.dialects.json_text import NotJson, strict_object
from janus_inference.dialects.media import bare_type, base64_of, text_of
from janus_inference.model import (
    Audio,
    Document,
    Empty,
    Image,
    JsonSchemaFormat,
    Media,
    Message,
    Opaque,
    Part,
    Prompt,
    Reasoning,
    Refusal,
    Role,
    Text,
    ToolCall,
    ToolResult,
)

CALL = "tool_use"
# Blocks that a breakpoint cannot stand at.
_UNMARKABLE = frozenset({"thinking", "redacted_thinking"})
# Fields without which a model reads its own earlier call as another's.
_KEPT = ("caller", "toolset_name")
_MALFORMED = "must be as the issuer wrote it"


class BlockWriter:
    """Writes what one request says. At most four breakpoints are sent, the last ones."""

    def __init__(self, prompt: Prompt, model: str, issuer: str) -> None:
        self._prompt, self._model, self._issuer = prompt, model, issuer
        self._marked = last_breakpoints(prompt.messages, MOST_BREAKPOINTS)
        # What only the issuer understands of a call, by the call's id.
        self._of_calls: dict[str, dict[str, Any]] = {}

    def system(self) -> str | list[dict[str, Any]]:
        """Instructions in one place: the provider takes them beside the messages."""
        messages = [message for message in self._prompt.messages if not self._is_said_in_turn(message)]
        parts: list[Part] = [Text(self._prompt.system)] if self._prompt.system else []
        parts += [part for message in messages if message.role is Role.SYSTEM for part in message.parts]
        wanted = self._prompt.response_format
        if isinstance(wanted, JsonSchemaFormat) and not wanted.strict:
            parts.append(Text(schemas.asked_for(wanted)))
        texts = [part for part in parts if isinstance(part, Text) and part.text.strip()]
        if not any(id(part) in self._marked for part in texts):
            return "\n\n".join(part.text for part in texts)
        return [self._mark({"type": "text", "text": part.text}, part) for part in texts]

    def messages(self) -> list[dict[str, Any]]:
        """User and assistant in turns: neighbours of one side become one message."""
        roles = {Role.ASSISTANT: "assistant", Role.SYSTEM: "system"}
        messages: list[dict[str, Any]] = []
        for index, message in enumerate(self._prompt.messages):
            if message.role is Role.SYSTEM and not self._is_said_in_turn(message):
                continue
            role = roles.get(message.role, "user")
            blocks = self._blocks(message.parts, f"prompt.messages[{index}]")
            if messages and messages[-1]["role"] == role:
                messages[-1]["content"] += blocks
            elif blocks:
                messages.append({"role": role, "content": blocks})
        return messages

    def _is_said_in_turn(self, message: Message) -> bool:
        """Instructions with blocks that mean something where they stand, such as a tool that is there from then on."""
        own = (isinstance(part, Opaque) and part.issuer == self._issuer for part in message.parts)
        return message.role is Role.SYSTEM and any(own)

    def _blocks(self, parts: Sequence[Part], path: str) -> list[dict[str, Any]]:
        blocks: list[dict[str, Any]] = []
        cited = sources(parts, self._issuer, path)
        for at, part in enumerate(parts):
            block = self._block(part, f"{path}.parts[{at}]")
            if block is not None:
                if at in cited and isinstance(part, Text):
                    block["citations"] = cited[at]
                blocks.append(self._mark(block, part))
            elif blocks and id(part) in self._marked:
                # A part that is not said: the breakpoint holds for what stands before it.
                self._mark(blocks[-1], part)
        return blocks

    def _mark(self, block: dict[str, Any], part: Part) -> dict[str, Any]:
        if id(part) in self._marked and block["type"] not in _UNMARKABLE:
            block["cache_control"] = {"type": "ephemeral"}
        return block

    def _block(self, part: Part, path: str) -> dict[str, Any] | None:
        """None for what is no block of its own: empty text, others' reasoning, citations, which go with their text."""
        match part:
            case Text(text=text) | Refusal(text=text):
                # Blanks alone are refused, and with them every later turn of the conversation.
                return {"type": "text", "text": text} if text.strip() else None
            case Image(media=media):
                return {"type": "image", "source": _source(media)}
            case Document():
                return self._document(part, path)
            case ToolCall():
                call_id = _id(part.call_id)
                said = {"type": CALL, "id": call_id, "name": part.name, "input": _input(part)}
                return said | self._of_calls.get(call_id, {})
            case ToolResult():
                result: dict[str, Any] = {"type": "tool_result", "tool_use_id": _id(part.call_id)}
                if content := self._blocks(part.parts, f"{path}.tool_result"):
                    result["content"] = content
                if part.is_error:
                    result["is_error"] = True
                return result
            case Reasoning():
                return _thought(part, path) if part.issuer == self._issuer else None
            case Opaque():
                return self._own_block(part, path) if part.issuer == self._issuer else None
            case Audio() | Empty():
                raise unsupported_part(self._model, part, path)
        return None

    def _own_block(self, part: Opaque, path: str) -> dict[str, Any] | None:
        """A whole block, or, for the call that follows, what was kept of it."""
        try:
            block = _object(part.data)
        except NotJson:
            block = {}
        if block.get("type") == part.type:
            return block
        if part.type != CALL or "type" in block or not isinstance(block.get("id"), str):
            raise malformed(f"{path}.opaque.data", _MALFORMED)
        self._of_calls[_id(block["id"])] = {name: block[name] for name in _KEPT if name in block}
        return None

    def _document(self, part: Document, path: str) -> dict[str, Any]:
        """A PDF as it is, plain text as text, an address for the provider to fetch."""
        media = part.media
        if (text := text_of(part)) is not None:
            source: Mapping[str, Any] = {"type": "text", "media_type": "text/plain", "data": text}
        elif media.data is None or bare_type(media) == "application/pdf":
            source = _source(media)
        else:
            rule = "this provider takes documents as PDF or plain text"
            raise unsupported(self._model, "DOCUMENT_INPUT", f"{path}.document", rule)
        block: dict[str, Any] = {"type": "document", "source": source}
        if part.title:
            block["title"] = part.title
        if part.citations:
            block["citations"] = {"enabled": True}
        return block


def kept(block: Mapping[str, Any]) -> dict[str, Any]:
    """What only the issuer understands of a call, and the call's id; empty when the model itself simply called."""
    fields = {name: block[name] for name in _KEPT if block.get(name) is not None}
    if fields.get("caller") == {"type": "direct"}:
        del fields["caller"]
    return {"id": block["id"], **fields} if fields else {}


def _id(call_id: str) -> str:
    return call_ids.fitting(call_id, call_ids.ANTHROPIC, 32)


def _source(media: Media) -> dict[str, Any]:
    if media.data is None:
        return {"type": "url", "url": media.uri or ""}
    return {"type": "base64", "media_type": bare_type(media), "data": base64_of(media.data)}


def _object(data: bytes) -> dict[str, Any]:
    """One JSON object that can be written again. Raises NotJson."""
    value = strict_object(data)
    try:
        # A number beyond every float is read as infinity, for which JSON has no word.
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        raise NotJson("cannot be written again") from None
    return value


def _input(call: ToolCall) -> Any:
    """The arguments as an object; what the model got wrong is shown to it as it was."""
    try:
        return _object((call.arguments_json or "{}").encode())
    except NotJson:
        return {"invalid_json": call.arguments_json}


def _thought(part: Reasoning, path: str) -> dict[str, Any] | None:
    try:
        if part.redacted is not None:
            return {"type": "redacted_thinking", "data": part.redacted.decode()}
        if not part.signature:
            return None  # without its proof the provider refuses it
        return {"type": "thinking", "thinking": part.text or "", "signature": part.signature.decode()}
    except UnicodeDecodeError:
        raise malformed(f"{path}.reasoning", _MALFORMED) from None
