"""What MCP servers list and answer, in the form in which Janus keeps it.

A server is not believed: its hints are hints, and what breaks a rule is left
out, or is a failed call, whose reason the model reads.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from janus_api.content.v1 import message_pb2
from janus_api.tools.v1 import tool_worker_service_pb2 as pb
from janus_kit import json_schema
from janus_kit.validate import Violations
from janus_orchestration.mcp_settings import McpServerSettings, McpToolSettings
from janus_orchestration.model import SideEffect, Tool, ToolOutput
from janus_orchestration.wire.workers import result_of, tool_from

if TYPE_CHECKING:
    import mcp_types as mcp

_MOST_TOOLS = 256
_MOST_LEFT_OUT = 16
_MOST_WORDS = 1_024
_MOST_REASON = 2_000
_NOTHING = McpToolSettings()


class LeftOut(NamedTuple):
    """A tool that is not offered, by the server's name, and the rule that it breaks."""

    tool: str
    why: str


class Listing(NamedTuple):
    """A server's tools under our names, and by the server's names what they promise to answer."""

    tools: tuple[Tool, ...]
    output_schemas: Mapping[str, Any]
    left_out: tuple[LeftOut, ...]


def listing_from(server: str, settings: McpServerSettings, listed: Sequence["mcp.Tool"]) -> Listing:
    """The tools that keep the rules that workers' tools keep; the others are left out."""
    names: set[str] = set()
    tools: list[Tool] = []
    schemas: dict[str, Any] = {}
    left_out: list[LeftOut] = []
    for place, sent in enumerate(listed):
        check = Violations()
        check.require(bool(sent.name), "tool.name", "must not be empty")
        check.require(place < _MOST_TOOLS, "tools", f"must have at most {_MOST_TOOLS} items")
        tool = tool_from(check, "tool", _described(server, sent), names)
        if check:
            left_out.append(LeftOut(_text(sent.name)[:64], check.found[0].rule))
            continue
        said = settings.tools.get(sent.name, _NOTHING)
        tools.append(
            replace(
                tool,
                side_effect=said.side_effect or _hinted(sent.annotations),
                timeout=timedelta(seconds=said.timeout_s or settings.timeout_s),
            )
        )
        if sent.output_schema is not None:
            schemas[sent.name] = sent.output_schema
    return Listing(tuple(tools), schemas, tuple(left_out[:_MOST_LEFT_OUT]))


def _described(server: str, sent: "mcp.Tool") -> pb.Tool:
    # What has no UTF-8 form is no text that could be passed on.
    description = (sent.description or sent.title or "").encode(errors="replace").decode()
    name = f"{server}.{sent.name}".encode(errors="replace").decode()
    return pb.Tool(name=name, description=description, parameters_schema_json=json.dumps(sent.input_schema))


def _hinted(annotations: "mcp.ToolAnnotations | None") -> SideEffect:
    """Without a hint: the careful choice."""
    if annotations is not None and annotations.read_only_hint:
        return SideEffect.READ_ONLY
    if annotations is not None and annotations.idempotent_hint:
        return SideEffect.IDEMPOTENT
    return SideEffect.AT_MOST_ONCE


def output_from(result: "mcp.CallToolResult", schema: Any) -> ToolOutput:
    """What a server answered, with ``schema`` as what it promised; None for nothing."""
    if schema is not None and not result.is_error:
        if result.structured_content is None:
            return _broken("it has no structured content, which the tool promises")
        if problem := json_schema.problem(result.structured_content, schema):
            return _broken(f"its structured content does not hold to the tool's own schema: {problem}")
    sent = message_pb2.ToolResult(is_error=bool(result.is_error))
    try:
        for block in result.content:
            _add(sent, block)
    except (binascii.Error, ValueError):
        return _broken("its data is not valid base64")
    # A server that sends both sends the same twice, as the protocol asks it to; the text is for models.
    if result.structured_content is not None and not sent.parts:
        sent.parts.add().text = _text(json.dumps(result.structured_content, ensure_ascii=False))
    return ToolOutput(wire=result_of(pb.CallCompleted(result=sent)))


def _add(sent: message_pb2.ToolResult, block: "mcp.ContentBlock") -> None:
    part = sent.parts.add()
    match block.type:
        case "text":
            part.text = _text(block.text)
        case "image":
            part.image.CopyFrom(_media(block.data, block.mime_type))
        case "audio":
            part.text = f"[audio of the type {_text(block.mime_type)[:64]}, which cannot be shown]"
        case "resource_link":
            part.text = "\n".join(
                _text(word) for word in (block.title or block.name, block.uri, block.description) if word
            )
        case "resource":
            resource = block.resource
            mime_type = resource.mime_type or "application/octet-stream"
            if (text := getattr(resource, "text", None)) is not None:
                part.text = _text(text)
            elif mime_type.startswith("image/"):
                part.image.CopyFrom(_media(resource.blob, mime_type))  # type: ignore[union-attr]
            else:
                media = _media(resource.blob, mime_type)  # type: ignore[union-attr]
                part.document.CopyFrom(message_pb2.Document(title=_text(resource.uri)[-256:], media=media))


def _media(data: str, mime_type: str) -> message_pb2.Media:
    return message_pb2.Media(data=base64.b64decode(data, validate=True), mime_type=_text(mime_type).partition(";")[0])


def _text(text: str) -> str:
    """Without halves of surrogate pairs, which JSON can have and UTF-8 cannot."""
    return text.encode(errors="replace").decode()


def _broken(why: str) -> ToolOutput:
    return ToolOutput(f"the tool ran, but its result breaks a rule: {why}", is_error=True)


def refusal_from(message: str) -> ToolOutput:
    """What a server said instead of a result."""
    said = _text(message)[:_MOST_REASON] or "nothing more"
    return ToolOutput(f"the tool's server answered with an error: {said}", is_error=True)


def progress_from(progress: float, total: float | None, message: str | None) -> tuple[float | None, str]:
    """How far a call is: the share that is done where the whole is known, and the server's words."""
    fraction = progress / total if total is not None and total > 0 else None
    # A number that is none, or infinite, says nothing.
    if fraction is not None and not 0 <= fraction <= 1:
        fraction = 1.0 if fraction > 1 else None
    return fraction, _text(message or "").replace("\x00", "\ufffd")[:_MOST_WORDS]
