"""The body of a Messages request.

What a model takes (thinking by budget or by effort, sampling, schemas) is in
``families``; what is not known of a model is tried.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from janus_inference.dialects import call_ids, schemas
from janus_inference.dialects.anthropic_thinking import thinking_of
from janus_inference.dialects.breakpoints import MOST_BREAKPOINTS, last_breakpoints
from janus_inference.dialects.capabilities import malformed, unsupported, unsupported_part
from janus_inference.dialects.json_text import NotJson, strict_object
from janus_inference.dialects.media import bare_type, base64_of, text_of
from janus_inference.families import family
from janus_inference.model import (
    Audio,
    Document,
    Empty,
    Image,
    JsonFormat,
    JsonSchemaFormat,
    Media,
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
from janus_inference.profiles import DEFAULT_MAX_OUTPUT_TOKENS, max_output_tokens

_CHOICE = {ToolChoiceMode.AUTO: "auto", ToolChoiceMode.NONE: "none", ToolChoiceMode.REQUIRED: "any"}
# Blocks that a breakpoint cannot stand at.
_UNMARKABLE = frozenset({"thinking", "redacted_thinking"})

# Set by Janus whatever the prompt says, so that options cannot set them.
RESERVED = frozenset({"model", "messages", "max_tokens", "stream"})
# What counting tokens takes of the request for an answer; it refuses anything else.
COUNTED = frozenset(
    {
        "model",
        "messages",
        "system",
        "thinking",
        "tools",
        "tool_choice",
        "output_config",
        "cache_control",
        "mcp_servers",
        "context_management",
        "speed",
    }
)


def messages_body(prompt: Prompt, model: str, issuer: str) -> dict[str, Any]:
    """The request for a streamed answer. Raises InvalidArgument for what cannot be said in it."""
    thinking = thinking_of(prompt, model)
    most = prompt.max_output_tokens or max_output_tokens(model)
    writer = _Writer(prompt, model, issuer)
    body: dict[str, Any] = {
        "model": model,
        "messages": writer.messages(),
        # The budget counts as output, so the default leaves the answer room beside it.
        "max_tokens": most or DEFAULT_MAX_OUTPUT_TOKENS + thinking.budget,
        "stream": True,
    }
    if system := writer.system():
        body["system"] = system
    if thinking.said is not None:
        body["thinking"] = thinking.said
    if prompt.tools:
        body["tools"] = [_tool(tool, index, model) for index, tool in enumerate(prompt.tools)]
    if choice := _tool_choice(prompt):
        body["tool_choice"] = choice
    if prompt.stop:
        body["stop_sequences"] = list(prompt.stop)
    config: dict[str, Any] = {}
    if thinking.effort is not None:
        config["effort"] = thinking.effort
    if (form := _format(prompt, model)) is not None:
        config["format"] = form
    if config:
        body["output_config"] = config
    return body | _sampling(prompt, model)


def count_body(prompt: Prompt, model: str, issuer: str) -> dict[str, Any]:
    """The request for the number of tokens of the same prompt."""
    body = messages_body(prompt, model, issuer)
    return {name: value for name, value in body.items() if name in COUNTED}


def _sampling(prompt: Prompt, model: str) -> dict[str, Any]:
    given = prompt.sampling
    for name in ("frequency_penalty", "presence_penalty", "seed"):
        if getattr(given, name) is not None:
            rule = f"this provider does not know {name}"
            raise unsupported(model, name, f"prompt.sampling.{name}", rule)
    if given.top_logprobs is not None:
        rule = "this provider gives no log-probabilities"
        raise unsupported(model, "LOGPROBS", "prompt.sampling.top_logprobs", rule)
    if given.temperature is not None and given.temperature > 1:
        rule = "this provider takes at most 1"
        raise unsupported(model, "temperature", "prompt.sampling.temperature", rule)
    said = {name: value for name in ("temperature", "top_p", "top_k") if (value := getattr(given, name)) is not None}
    if said and not family(model).sampling:
        name = next(iter(said))
        raise unsupported(model, name, f"prompt.sampling.{name}", "this model draws tokens in its own way")
    return said


def _cannot_hold(model: str) -> bool:
    """Whether a model is known to have no schemas; one that is not known is tried."""
    known = family(model).capabilities
    return bool(known) and "JSON_SCHEMA" not in known


def _format(prompt: Prompt, model: str) -> dict[str, Any] | None:
    """A schema that the answer is held to. Without `strict` the model is asked in words, see ``_asked``."""
    wanted = prompt.response_format
    if wanted is None:
        return None
    if isinstance(wanted, JsonFormat):
        rule = "this provider takes a JSON schema, not JSON without one"
        raise unsupported(model, "JSON", "prompt.response_format.json", rule)
    if not wanted.strict:
        return None
    if _cannot_hold(model):
        raise schemas.refuse_strict_format(model)
    return {"type": "json_schema", "schema": json.loads(wanted.schema_json)}


def _tool(tool: ToolDefinition, index: int, model: str) -> dict[str, Any]:
    made: dict[str, Any] = {"name": tool.name, "input_schema": schemas.parameters(tool)}
    if tool.description:
        made["description"] = tool.description
    if tool.strict:
        if _cannot_hold(model):
            raise schemas.refuse_strict_tool(model, index)
        made["strict"] = True
    return made


def _tool_choice(prompt: Prompt) -> dict[str, Any] | None:
    if not prompt.may_call:
        return None
    given, parallel = prompt.tool_choice, prompt.parallel_tool_calls
    if given is None and parallel is None:
        return None
    choice: dict[str, Any] = {"type": "auto"}
    if given is not None:
        named = given.mode is ToolChoiceMode.NAMED
        choice = {"type": "tool", "name": given.name} if named else {"type": _CHOICE[given.mode]}
    if parallel is not None and choice["type"] != "none":
        choice["disable_parallel_tool_use"] = not parallel
    return choice


class _Writer:
    """Writes what one request says. At most four breakpoints are sent, the last ones."""

    def __init__(self, prompt: Prompt, model: str, issuer: str) -> None:
        self._prompt, self._model, self._issuer = prompt, model, issuer
        self._marked = last_breakpoints(prompt.messages, MOST_BREAKPOINTS)

    def system(self) -> str | list[dict[str, Any]]:
        """Instructions in one place: the provider takes them beside the messages."""
        messages = self._prompt.messages
        parts: list[Part] = [Text(self._prompt.system)] if self._prompt.system else []
        parts += [part for message in messages if message.role is Role.SYSTEM for part in message.parts]
        wanted = self._prompt.response_format
        if isinstance(wanted, JsonSchemaFormat) and not wanted.strict:
            parts.append(Text(schemas.asked_for(wanted)))
        texts = [part for part in parts if isinstance(part, Text) and part.text]
        if not any(id(part) in self._marked for part in texts):
            return "\n\n".join(part.text for part in texts)
        return [self._mark({"type": "text", "text": part.text}, part) for part in texts]

    def messages(self) -> list[dict[str, Any]]:
        """User and assistant in turns: neighbours of one side become one message."""
        messages: list[dict[str, Any]] = []
        for index, message in enumerate(self._prompt.messages):
            if message.role is Role.SYSTEM:
                continue
            role = "assistant" if message.role is Role.ASSISTANT else "user"
            blocks = self._blocks(message.parts, f"prompt.messages[{index}]")
            if messages and messages[-1]["role"] == role:
                messages[-1]["content"] += blocks
            elif blocks:
                messages.append({"role": role, "content": blocks})
        return messages

    def _blocks(self, parts: Iterable[Part], path: str) -> list[dict[str, Any]]:
        blocks: list[dict[str, Any]] = []
        for at, part in enumerate(parts):
            block = self._block(part, f"{path}.parts[{at}]")
            if block is not None:
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
        """None for what is not said to this provider: empty text, others' reasoning, citations."""
        match part:
            case Text(text=text) | Refusal(text=text):
                # Blanks alone are refused, and with them every later turn of the conversation.
                return {"type": "text", "text": text} if text.strip() else None
            case Image(media=media):
                return {"type": "image", "source": _source(media)}
            case Document():
                return self._document(part, path)
            case ToolCall():
                return {"type": "tool_use", "id": _id(part.call_id), "name": part.name, "input": _input(part)}
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
                return _own_block(part, path) if part.issuer == self._issuer else None
            case Audio() | Empty():
                raise unsupported_part(self._model, part, path)
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
        return block


def _id(call_id: str) -> str:
    return call_ids.fitting(call_id, call_ids.ANTHROPIC, 32)


def _source(media: Media) -> dict[str, Any]:
    if media.data is None:
        return {"type": "url", "url": media.uri or ""}
    return {"type": "base64", "media_type": bare_type(media), "data": base64_of(media.data)}


def _input(call: ToolCall) -> Any:
    """The arguments as an object; what the model got wrong is shown to it as it was."""
    try:
        return strict_object((call.arguments_json or "{}").encode())
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
        raise malformed(f"{path}.reasoning", "must be as the issuer wrote it") from None


def _own_block(part: Opaque, path: str) -> dict[str, Any]:
    try:
        return strict_object(part.data)
    except NotJson:
        raise malformed(f"{path}.opaque.data", "must be as the issuer wrote it") from None
