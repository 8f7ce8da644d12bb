"""The body of a Chat Completions request."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from janus_inference.dialects import schemas
from janus_inference.dialects.breakpoints import MOST_BREAKPOINTS, last_breakpoints
from janus_inference.dialects.call_ids import fitting
from janus_inference.dialects.capabilities import malformed, unsupported, unsupported_part
from janus_inference.dialects.efforts import effort_word
from janus_inference.dialects.media import (
    AUDIO_FORMATS,
    bare_type,
    base64_of,
    data_url,
    file_name,
    inline_text,
    text_of,
)
from janus_inference.families import family
from janus_inference.model import (
    Audio,
    Document,
    Effort,
    Image,
    JsonFormat,
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
    ToolChoiceMode,
    ToolDefinition,
    ToolResult,
)
from janus_inference.profiles import ChatProfile, Documents, EffortForm

# A name that every server of this dialect takes; others are left out, as the field is a hint.
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

# Set by Janus whatever the prompt says, so that options cannot set them.
RESERVED = frozenset({"model", "messages", "stream", "stream_options", "n"})


def chat_body(prompt: Prompt, model: str, profile: ChatProfile, issuer: str) -> dict[str, Any]:
    """The request for a streamed answer. Raises InvalidArgument for what cannot be said in it."""
    body: dict[str, Any] = {"model": model, "messages": _Writer(model, profile, issuer).messages(prompt)}
    body["stream"] = True
    if profile.stream_usage:
        body["stream_options"] = {"include_usage": True}
    if prompt.tools:
        body["tools"] = [_tool(tool, index, model, profile) for index, tool in enumerate(prompt.tools)]
    # Without tools there is nothing to choose from, and some refuse to be told how.
    if prompt.tool_choice is not None and prompt.may_call:
        body["tool_choice"] = (
            {"type": "function", "function": {"name": prompt.tool_choice.name}}
            if prompt.tool_choice.mode is ToolChoiceMode.NAMED
            else prompt.tool_choice.mode.value
        )
    if prompt.parallel_tool_calls is not None and prompt.may_call:
        body["parallel_tool_calls"] = prompt.parallel_tool_calls
    if prompt.response_format is not None:
        body["response_format"] = _format(prompt.response_format, model, profile)
    if prompt.max_output_tokens is not None:
        body[profile.max_tokens_field] = prompt.max_output_tokens
    if prompt.stop:
        if profile.max_stop is not None and len(prompt.stop) > profile.max_stop:
            rule = f"this provider takes at most {profile.max_stop} stop sequences"
            raise unsupported(model, "stop", "prompt.stop", rule)
        body["stop"] = list(prompt.stop)
    return body | _sampling(prompt, model, profile) | _reasoning(prompt, model, profile)


def _sampling(prompt: Prompt, model: str, profile: ChatProfile) -> dict[str, Any]:
    given = prompt.sampling
    if given.top_k is not None and not profile.extra_sampling:
        raise unsupported(model, "top_k", "prompt.sampling.top_k", "this provider does not know top_k")
    names = ("temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty")
    said: dict[str, Any] = {name: value for name in names if (value := getattr(given, name)) is not None}
    if given.seed is not None:
        said[profile.seed_field] = given.seed
    if given.top_logprobs is not None:
        if not profile.logprobs:
            rule = "this provider gives no log-probabilities"
            raise unsupported(model, "LOGPROBS", "prompt.sampling.top_logprobs", rule)
        said |= {"logprobs": True, "top_logprobs": given.top_logprobs}
    return said


def _reasoning(prompt: Prompt, model: str, profile: ChatProfile) -> dict[str, Any]:
    """How much to think. A summary cannot be asked for in this dialect: what a server shows, it shows."""
    asked = prompt.reasoning
    if asked is None:
        return {}
    if asked.budget_tokens is not None:
        if profile.effort is EffortForm.OBJECT:
            return {"reasoning": {"max_tokens": asked.budget_tokens} if asked.budget_tokens else {"enabled": False}}
        if asked.budget_tokens:
            rule = "this provider takes an effort, not a number of tokens"
            raise unsupported(model, "REASONING", "prompt.reasoning.budget_tokens", rule)
    effort = Effort.NONE if asked.budget_tokens == 0 else asked.effort
    if effort is None:
        return {}
    off = effort is Effort.NONE
    match profile.effort:
        case EffortForm.OBJECT:
            return {"reasoning": {"effort": effort.value}}
        case EffortForm.SWITCH:
            return {"thinking": {"type": "disabled" if off else "enabled"}}
        case EffortForm.TEMPLATE | EffortForm.WORD_TEMPLATE if off:
            return {"chat_template_kwargs": {"enable_thinking": False}}
    word = effort_word(effort, model, _words(model, profile))
    if word is None:
        return {}
    if profile.effort is EffortForm.TEMPLATE:
        return {"chat_template_kwargs": {"reasoning_effort": word}}
    return {"reasoning_effort": word}


def _words(model: str, profile: ChatProfile) -> tuple[str, ...] | None:
    name = model.rpartition("/")[2].lower()
    for prefix, words in profile.effort_words.items():
        if name.startswith(prefix):
            return words
    # What a model takes elsewhere is no rule for a server of somebody's own.
    return family(model).efforts if profile.by_family else None


def _format(wanted: JsonFormat | JsonSchemaFormat, model: str, profile: ChatProfile) -> dict[str, Any]:
    if isinstance(wanted, JsonFormat):
        return {"type": "json_object"}
    if not schemas.can_hold(model, profile):
        if wanted.strict:
            raise schemas.refuse_strict_format(model)
        return {"type": "json_object"}
    schema: dict[str, Any] = {"name": wanted.name, "schema": json.loads(wanted.schema_json)}
    if wanted.description:
        schema["description"] = wanted.description
    if wanted.strict:
        schema["strict"] = True
    return {"type": "json_schema", "json_schema": schema}


def _tool(tool: ToolDefinition, index: int, model: str, profile: ChatProfile) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters_schema_json or tool.strict:
        function["parameters"] = schemas.parameters(tool)
    if tool.strict:
        if not (profile.strict_tools and schemas.can_hold(model, profile)):
            raise schemas.refuse_strict_tool(model, index)
        function["strict"] = True
    return {"type": "function", "function": function}


class _Writer:
    """Writes the messages of one request for one model of one server."""

    def __init__(self, model: str, profile: ChatProfile, issuer: str) -> None:
        self._model, self._profile, self._issuer = model, profile, issuer
        # Only the maker's models take breakpoints, whoever serves them.
        self._marks = profile.cache_control and "claude" in model.lower()
        self._marked: frozenset[int] = frozenset()

    def messages(self, prompt: Prompt) -> list[dict[str, Any]]:
        said: list[dict[str, Any]] = []
        if self._marks:
            self._marked = last_breakpoints(prompt.messages, MOST_BREAKPOINTS)
        if prompt.system:
            said.append({"role": "system", "content": prompt.system})
        wanted = prompt.response_format
        if isinstance(wanted, JsonSchemaFormat) and not schemas.can_hold(self._model, self._profile):
            said.append({"role": "system", "content": schemas.asked_for(wanted)})
        for index, message in enumerate(prompt.messages):
            said.extend(self._message(message, f"prompt.messages[{index}]"))
        return said

    def _message(self, message: Message, path: str) -> Iterable[dict[str, Any]]:
        if message.role is Role.TOOL:
            for at, part in enumerate(message.parts):
                if isinstance(part, ToolResult):
                    content = self._result(part, f"{path}.parts[{at}]")
                    yield {"role": "tool", "tool_call_id": self._id(part.call_id), "content": content}
            return
        if message.role is Role.ASSISTANT:
            said = self._assistant(message, path)
        else:
            said = {"role": message.role.value, "content": self._content(message.parts, path)}
        if _NAME.fullmatch(message.name):
            said["name"] = message.name
        yield said

    def _id(self, call_id: str) -> str:
        return fitting(call_id, self._profile.call_id, self._profile.call_id_length)

    def _content(self, parts: Sequence[Part], path: str) -> str | list[dict[str, Any]]:
        if len(parts) == 1 and isinstance(parts[0], Text) and id(parts[0]) not in self._marked:
            return parts[0].text
        return [self._block(part, f"{path}.parts[{at}]") for at, part in enumerate(parts)]

    def _block(self, part: Part, path: str) -> dict[str, Any]:
        block = self._unmarked(part, path)
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
        raise unsupported_part(self._model, part, path)

    def _document(self, part: Document, path: str) -> dict[str, Any]:
        """Plain text is said as text, which every model reads."""
        if (text := text_of(part)) is not None:
            return {"type": "text", "text": inline_text(part.title, text)}
        takes = self._profile.documents
        if takes is Documents.NO:
            raise unsupported_part(self._model, part, path)
        if part.media.data is None and takes is not Documents.BYTES_OR_ADDRESS:
            rule = "this provider takes the bytes of a document, not its address"
            raise unsupported(self._model, "DOCUMENT_INPUT", f"{path}.document", rule)
        return {"type": "file", "file": {"filename": file_name(part), "file_data": data_url(part.media)}}

    def _result(self, result: ToolResult, path: str) -> str:
        """A tool's answer; this dialect has text only, and no mark for an error."""
        texts = []
        for at, part in enumerate(result.parts):
            text = part.text if isinstance(part, Text) else None
            if isinstance(part, Document) and (words := text_of(part)) is not None:
                text = inline_text(part.title, words)
            if text is None:
                raise unsupported_part(self._model, part, f"{path}.tool_result.parts[{at}]")
            texts.append(text)
        whole = "\n".join(texts)
        return f"Error: {whole}" if result.is_error else whole

    def _assistant(self, message: Message, path: str) -> dict[str, Any]:
        said: dict[str, Any] = {"role": "assistant"}
        texts = [part for part in message.parts if isinstance(part, Text)]
        refusals = [part.text for part in message.parts if isinstance(part, Refusal)]
        calls = [part for part in message.parts if isinstance(part, ToolCall)]
        if any(id(part) in self._marked for part in texts):
            said["content"] = [self._block(part, path) for part in texts]
        elif texts or not calls:
            said["content"] = "".join(part.text for part in texts)
        if refusals:
            said["refusal"] = "".join(refusals)
        if calls:
            said["tool_calls"] = [
                {
                    "id": self._id(call.call_id),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments_json or "{}"},
                }
                for call in calls
            ]
        return said | _thoughts(message.parts, self._profile, self._issuer, path)


def _thoughts(parts: Sequence[Part], profile: ChatProfile, issuer: str, path: str) -> dict[str, Any]:
    """Earlier reasoning, sent back to its issuer alone and only where the server takes it."""
    back: dict[str, Any] = {}
    thought = ""
    for at, part in enumerate(parts):
        if isinstance(part, Opaque) and part.issuer == issuer and part.type == "reasoning_details":
            try:
                back["reasoning_details"] = json.loads(part.data)
            except (ValueError, RecursionError):
                raise malformed(f"{path}.parts[{at}].opaque.data", "must be as the issuer wrote it") from None
        elif isinstance(part, Reasoning) and part.issuer == issuer:
            thought += part.text or ""
    if thought and profile.reasoning_field:
        back[profile.reasoning_field] = thought
    return back
