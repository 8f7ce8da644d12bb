"""The messages of a Chat Completions request."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from janus_inference.dialects import schemas
from janus_inference.dialects.breakpoints import MOST_BREAKPOINTS, last_breakpoints
from janus_inference.dialects.call_ids import fitting
from janus_inference.dialects.capabilities import (
    malformed,
    nothing_to_say,
    refuse_citations,
    unsupported,
    unsupported_part,
)
from janus_inference.dialects.json_text import NotJson, object_text, strict_object
from janus_inference.dialects.media import (
    AUDIO_FORMATS,
    bare_type,
    base64_of,
    data_url,
    file_name,
    inline_text,
    text_of,
)
from janus_inference.dialects.openai_chat_calls import CUSTOM, custom_id, custom_input
from janus_inference.dialects.openai_chat_reasoning import details_of
from janus_inference.dialects.parts import own_block, shown
from janus_inference.model import (
    Audio,
    Document,
    Image,
    JsonSchemaFormat,
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

# A name that every server of this dialect takes; others are left out, as the field is a hint.
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class MessageWriter:
    """Writes the messages of one request for one model of one server."""

    def __init__(self, model: str, profile: ChatProfile, issuer: str) -> None:
        self._model, self._profile, self._issuer = model, profile, issuer
        # Only the maker's models take breakpoints, whoever serves them.
        self._marks = profile.cache_control and "claude" in model.lower()
        self._marked: frozenset[int] = frozenset()

    def messages(self, prompt: Prompt) -> list[dict[str, Any]]:
        said: list[dict[str, Any]] = []
        if self._marks:
            self._marked = last_breakpoints(prompt.messages, MOST_BREAKPOINTS, _carries)
        if prompt.system:
            said.append({"role": "system", "content": prompt.system})
        wanted = prompt.response_format
        if isinstance(wanted, JsonSchemaFormat) and not schemas.can_hold(self._model, self._profile):
            said.append({"role": "system", "content": schemas.asked_for(wanted)})
        for index, message in enumerate(prompt.messages):
            said.extend(self._message(message, f"prompt.messages[{index}]"))
        if not said:
            raise nothing_to_say()
        return said

    def _message(self, message: Message, path: str) -> Iterable[dict[str, Any]]:
        if message.role is Role.TOOL:
            for at, part in enumerate(message.parts):
                if isinstance(part, ToolResult):
                    content = self._result(part, f"{path}.parts[{at}]")
                    yield {"role": "tool", "tool_call_id": self._id(part.call_id), "content": content}
            return
        said: dict[str, Any]
        if message.role is Role.ASSISTANT:
            said = self._assistant(message, path)
            if said == {"role": "assistant"}:
                # Others' own blocks and reasoning, and nothing besides.
                return
        elif (content := self._content(message.parts, path)) != []:
            said = {"role": message.role.value, "content": content}
        else:
            return
        if _NAME.fullmatch(message.name):
            said["name"] = message.name
        yield said

    def _id(self, call_id: str) -> str:
        return fitting(call_id, self._profile.call_id, self._profile.call_id_length)

    def _content(self, parts: Sequence[Part], path: str) -> str | list[dict[str, Any]]:
        if len(parts) == 1 and isinstance(parts[0], Text) and id(parts[0]) not in self._marked:
            return parts[0].text
        return [self._block(part, f"{path}.parts[{at}]") for at, part in shown(parts, self._issuer)]

    def _block(self, part: Part, path: str) -> dict[str, Any]:
        return self._mark(self._unmarked(part, path), part)

    def _mark(self, block: dict[str, Any], part: Part) -> dict[str, Any]:
        if id(part) in self._marked:
            block["cache_control"] = {"type": "ephemeral"}
        return block

    def _unmarked(self, part: Part, path: str) -> dict[str, Any]:
        match part:
            case Text(text=text):
                return {"type": "text", "text": text}
            case Image(media=media):
                return {"type": "image_url", "image_url": {"url": data_url(media)}}
            case Audio(media=media) if self._profile.audio:
                kind = AUDIO_FORMATS.get(bare_type(media))
                if media.data is None or kind is None:
                    rule = "this provider takes the bytes of sound as WAV or MP3"
                    raise unsupported(self._model, "AUDIO_INPUT", f"{path}.audio", rule)
                return {"type": "input_audio", "input_audio": {"data": base64_of(media.data), "format": kind}}
            case Document():
                return self._document(part, path)
            case Opaque():
                return own_block(part, path)
        raise unsupported_part(self._model, part, path)

    def _document(self, part: Document, path: str) -> dict[str, Any]:
        """Plain text is said as text, which every model reads."""
        refuse_citations(self._model, part, path)
        if (text := text_of(part)) is not None:
            return {"type": "text", "text": inline_text(part.title, text)}
        takes = self._profile.documents
        if takes is Documents.NO:
            raise unsupported_part(self._model, part, path)
        if part.media.data is None and takes is not Documents.BYTES_OR_ADDRESS:
            rule = "this provider takes the bytes of a document, not its address"
            raise unsupported(self._model, "DOCUMENT_INPUT", f"{path}.document", rule)
        return {"type": "file", "file": {"filename": file_name(part), "file_data": data_url(part.media)}}

    def _result(self, result: ToolResult, path: str) -> str | list[dict[str, Any]]:
        """A tool's answer; this dialect has text only, and no mark for an error."""
        texts, parts = [], shown(result.parts, self._issuer)
        for at, part in parts:
            text = part.text if isinstance(part, Text) else None
            if isinstance(part, Document) and (words := text_of(part)) is not None:
                refuse_citations(self._model, part, f"{path}.tool_result.parts[{at}]")
                text = inline_text(part.title, words)
            if text is None:
                raise unsupported_part(self._model, part, f"{path}.tool_result.parts[{at}]")
            texts.append(text)
        if any(id(part) in self._marked for _, part in parts):
            # Only a block can carry a breakpoint.
            blocks = [
                self._mark({"type": "text", "text": text}, part) for text, (_, part) in zip(texts, parts, strict=True)
            ]
            return [{"type": "text", "text": "Error:"}, *blocks] if result.is_error else blocks
        whole = "\n".join(texts)
        return f"Error: {whole}" if result.is_error else whole

    def _assistant(self, message: Message, path: str) -> dict[str, Any]:
        said: dict[str, Any] = {"role": "assistant"}
        texts = [part for part in message.parts if isinstance(part, Text)]
        refusals = [part.text for part in message.parts if isinstance(part, Refusal)]
        calls = self._calls(message.parts, path)
        if any(id(part) in self._marked for part in texts):
            said["content"] = [self._block(part, path) for part in texts if part.text]
        elif texts:
            said["content"] = "".join(part.text for part in texts)
        if refusals:
            said["refusal"] = "".join(refusals)
        if calls:
            said["tool_calls"] = calls
        said |= _thoughts(message.parts, self._profile, self._issuer, path)
        if len(said) > 1 and not calls:
            # Only beside calls may there be none.
            said.setdefault("content", "")
        return said

    def _calls(self, parts: Sequence[Part], path: str) -> list[dict[str, Any]]:
        """The calls; those that their issuer knows as calls of free text are said to it as such."""
        calls: list[dict[str, Any]] = []
        custom: object = None
        for at, part in enumerate(parts):
            if isinstance(part, Opaque) and part.issuer == self._issuer and part.type == CUSTOM:
                custom = _own(custom_id, part, f"{path}.parts[{at}]")
            elif isinstance(part, ToolCall):
                call_id, text = self._id(part.call_id), custom_input(part) if part.call_id == custom else None
                arguments = {"name": part.name, "arguments": object_text(part.arguments_json)}
                calls.append(
                    {"id": call_id, "type": "function", "function": arguments}
                    if text is None
                    else {"id": call_id, "type": "custom", "custom": {"name": part.name, "input": text}}
                )
        return calls


def _thoughts(parts: Sequence[Part], profile: ChatProfile, issuer: str, path: str) -> dict[str, Any]:
    """Earlier reasoning and notes, sent back to their issuer alone and only where the server takes them."""
    back: dict[str, Any] = {}
    thought = ""
    for at, part in enumerate(parts):
        if isinstance(part, Opaque) and part.issuer == issuer and part.type == "reasoning_details":
            back["reasoning_details"] = _own(details_of, part, f"{path}.parts[{at}]")
        elif isinstance(part, Opaque) and part.issuer == issuer and part.type == "annotations":
            notes = _own(_annotations_of, part, f"{path}.parts[{at}]")
            back["annotations"] = [*back.get("annotations", ()), *notes]
        elif isinstance(part, Reasoning) and part.issuer == issuer:
            thought += part.text or ""
    if thought and profile.reasoning_field:
        back[profile.reasoning_field] = thought
    return back


def _annotations_of(data: bytes) -> list[Any]:
    """What a server made of a document, which saves it from reading that again. Raises NotJson."""
    notes = strict_object(data).get("annotations")
    if not isinstance(notes, list):
        raise NotJson("has no list")
    return notes


def _own(read: Callable[[bytes], Any], part: Opaque, path: str) -> Any:
    try:
        return read(part.data)
    except NotJson:
        raise malformed(f"{path}.opaque.data", "must be as the issuer wrote it") from None


def _carries(part: Part, role: Role) -> bool:
    """Whether a part is said as a block, which a breakpoint can stand at; it may not stand at blanks."""
    if isinstance(part, Text):
        return bool(part.text.strip())
    if role is Role.TOOL:
        return isinstance(part, Document) and text_of(part) is not None
    return role is not Role.ASSISTANT and isinstance(part, Image | Audio | Document)
