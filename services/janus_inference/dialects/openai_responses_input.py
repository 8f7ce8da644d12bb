"""The `input` of a Responses request: a conversation as a list of items."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from janus_inference.dialects import call_ids
from janus_inference.dialects.capabilities import malformed, nothing_to_say, refuse_citations, unsupported_part
from janus_inference.dialects.json_text import NotJson, object_text, strict_object
from janus_inference.dialects.media import data_url, file_name, inline_text, text_of
from janus_inference.dialects.openai_responses_items import CALL, REASONING, kept
from janus_inference.dialects.parts import own_block, shown
from janus_inference.model import (
    Document,
    Image,
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
from janus_inference.profiles import ChatProfile, Documents

_MALFORMED = "must be as the issuer wrote it"
# Blocks of the same issuer's Chat Completions, which have no place here.
_OF_CHAT = frozenset({"reasoning_details", "executed_tools"})


class ItemWriter:
    """Writes the messages of one request for one model of one server.

    ``marks``: the model takes prompt-cache breakpoints.
    """

    def __init__(self, model: str, profile: ChatProfile, issuer: str, *, marks: bool) -> None:
        self._model, self._profile, self._issuer, self._marks = model, profile, issuer, marks
        # What only the issuer understands of a call, for the call and for its result.
        self._of_calls: dict[str, dict[str, Any]] = {}

    def items(self, prompt: Prompt) -> list[dict[str, Any]]:
        """All of it. Raises InvalidArgument for what cannot be said."""
        said: list[dict[str, Any]] = []
        for index, message in enumerate(prompt.messages):
            said.extend(self._message(message, f"prompt.messages[{index}]"))
        if not said and not prompt.system:
            raise nothing_to_say()
        return said

    def _message(self, message: Message, path: str) -> Iterable[dict[str, Any]]:
        match message.role:
            case Role.TOOL:
                for at, part in enumerate(message.parts):
                    if isinstance(part, ToolResult):
                        yield self._result(part, f"{path}.parts[{at}]")
            case Role.ASSISTANT:
                yield from self._assistant(message.parts, path)
            case role:
                if (content := self._content(message.parts, path)) != []:
                    yield {"role": role.value, "content": content}

    def _content(self, parts: Sequence[Part], path: str) -> str | list[dict[str, Any]]:
        if len(parts) == 1 and isinstance(parts[0], Text) and not self._is_marked(parts[0]):
            return parts[0].text
        return [self._block(part, f"{path}.parts[{at}]") for at, part in shown(parts, self._issuer)]

    def _is_marked(self, part: Part) -> bool:
        return self._marks and part.cache_breakpoint

    def _block(self, part: Part, path: str) -> dict[str, Any]:
        match part:
            case Text(text=text):
                block = {"type": "input_text", "text": text}
            case Image(media=media):
                block = {"type": "input_image", "image_url": data_url(media), "detail": "auto"}
            case Document():
                block = self._document(part, path)
            case Opaque():
                block = own_block(part, path)
            case _:
                raise unsupported_part(self._model, part, path)
        return _marked(block) if self._is_marked(part) else block

    def _document(self, part: Document, path: str) -> dict[str, Any]:
        """Plain text is said as text, which every model reads."""
        refuse_citations(self._model, part, path)
        if (text := text_of(part)) is not None:
            return {"type": "input_text", "text": inline_text(part.title, text)}
        if self._profile.documents is Documents.NO:
            raise unsupported_part(self._model, part, path)
        if part.media.data is None:
            return {"type": "input_file", "file_url": part.media.uri or ""}
        return {"type": "input_file", "filename": file_name(part), "file_data": data_url(part.media)}

    def _result(self, result: ToolResult, path: str) -> dict[str, Any]:
        """A tool's answer; this dialect has no mark for an error."""
        item: dict[str, Any] = {"type": "function_call_output", "call_id": _fitting(result.call_id)}
        parts = shown(result.parts, self._issuer)
        marked = self._is_marked(result) or any(self._is_marked(part) for _, part in parts)
        if marked or not all(isinstance(part, Text) for _, part in parts):
            blocks = [self._block(part, f"{path}.tool_result.parts[{at}]") for at, part in parts]
            if result.is_error:
                blocks.insert(0, {"type": "input_text", "text": "Error:"})
            if self._is_marked(result) and blocks:
                _marked(blocks[-1])
            item["output"] = blocks
        else:
            whole = "\n".join(part.text for _, part in parts if isinstance(part, Text))
            item["output"] = f"Error: {whole}" if result.is_error else whole
        if caller := self._of_calls.get(_fitting(result.call_id), {}).get("caller"):
            # A program of the model's made this call; the result goes to that program.
            item["caller"] = caller
        return item

    def _assistant(self, parts: Sequence[Part], path: str) -> Iterable[dict[str, Any]]:
        """Words that follow each other are one message; others' reasoning and blocks, and citations, are not said."""
        words: list[str] = []
        about: Mapping[str, Any] = {}
        for at, part in enumerate(parts):
            match part:
                case Text(text=text) | Refusal(text=text):
                    words.append(text)
                    continue
                case ToolCall():
                    item: dict[str, Any] | None = _call(part) | self._of_calls.get(_fitting(part.call_id), {})
                case Reasoning() if part.issuer == self._issuer:
                    item = _thought(part, f"{path}.parts[{at}]")
                case Opaque() if part.issuer == self._issuer and part.type not in _OF_CHAT:
                    item = _own(part, f"{path}.parts[{at}]")
                case _:
                    continue
            yield from _said(words, about)
            words, about = [], {}
            if item is None:
                continue
            if "type" in item:
                yield item
            elif "call_id" in item:
                item["call_id"] = _fitting(str(item["call_id"]))
                self._of_calls[item["call_id"]] = item
            else:
                about = item
        yield from _said(words, about)


def _said(words: list[str], about: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    if text := "".join(words):
        yield {"role": "assistant", "content": text, **about}


def _fitting(call_id: str) -> str:
    """Other providers' ids may be longer than this API takes."""
    return call_ids.fitting(call_id, call_ids.RESPONSES, 32)


def _call(call: ToolCall) -> dict[str, Any]:
    return {
        "type": CALL,
        "call_id": _fitting(call.call_id),
        "name": call.name,
        "arguments": object_text(call.arguments_json),
    }


def _marked(block: dict[str, Any]) -> dict[str, Any]:
    block["prompt_cache_breakpoint"] = {"mode": "explicit"}
    return block


def _thought(part: Reasoning, path: str) -> dict[str, Any] | None:
    """The very item; None where the provider would look for its content in vain."""
    if not part.signature:
        return None
    item = _object(part.signature)
    if item is None or item.get("type") != REASONING:
        raise malformed(f"{path}.reasoning", _MALFORMED)
    return item if item.get("encrypted_content") or item.get("content") else None


def _own(part: Opaque, path: str) -> dict[str, Any]:
    """A whole item, with its type, or what was kept of one, without."""
    item = _object(part.data)
    if item is None or item.get("type", part.type) != part.type:
        raise malformed(f"{path}.opaque.data", _MALFORMED)
    return item if "type" in item else kept(part.type, item)


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        return strict_object(data)
    except NotJson:
        return None
