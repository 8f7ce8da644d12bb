"""Tool calls and their results in their wire form."""

import json
import re
from collections.abc import Sequence
from datetime import datetime

from janus_api.content.v1 import message_pb2
from janus_api.orchestration.v1 import event_pb2
from janus_kit.json_schema.rules import schema_problem
from janus_kit.validate import Violations
from janus_orchestration.model import Message, ToolCall, ToolOutput
from janus_orchestration.wire.content import completed, pieces

_MAX_DESCRIPTION = 16 * 1024
_MAX_SCHEMA, _SCHEMA_DEPTH, _SCHEMA_NODES = 64 * 1024, 32, 1_000
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


def check_tool_name(check: Violations, where: str, name: str, before: set[str]) -> None:
    """A tool's name, and that it is none of those ``before``, which it joins."""
    is_named = _TOOL_NAME.fullmatch(name) is not None
    if check.require(is_named, where, "must be 1 to 64 letters, digits, '_', '.' and '-'"):
        check.require(name not in before, where, "must be unique among the tools")
    before.add(name)


def check_description(check: Violations, where: str, description: str, schema_json: str) -> None:
    """What a model is told of a tool, and the schema of its arguments."""
    check.require("\x00" not in description, f"{where}.description", "must not contain NUL characters")
    check.require(len(description.encode()) <= _MAX_DESCRIPTION, f"{where}.description", "must be at most 16 KiB")
    if schema_json:
        problem = schema_problem(schema_json, _MAX_SCHEMA, _SCHEMA_DEPTH, _SCHEMA_NODES)
        if problem is None and json.loads(schema_json).get("type", "object") != "object":
            problem = "must be the schema of an object"
        check.require(problem is None, f"{where}.parameters_schema_json", problem or "")


class ProtobufTools:
    """The codec of what messages carry for tools."""

    def calls(self, answer: Message) -> tuple[ToolCall, ...]:
        message = message_pb2.Message.FromString(answer.wire)
        calls = [part.tool_call for part in message.parts if part.HasField("tool_call")]
        return tuple(ToolCall(call.call_id, call.name, call.arguments_json) for call in calls)

    def result(self, call_id: str, output: ToolOutput) -> bytes:
        if output.wire:
            whole = message_pb2.ToolResult.FromString(output.wire)
            whole.call_id = call_id
            return whole.SerializeToString(deterministic=True)
        # No store of texts holds a NUL.
        text = output.text.replace("\x00", "\ufffd")
        parts = [message_pb2.Part(text=piece) for piece in pieces(text)]
        result = message_pb2.ToolResult(call_id=call_id, parts=parts, is_error=output.is_error)
        return result.SerializeToString(deterministic=True)

    def is_failure(self, output: ToolOutput) -> bool:
        return message_pb2.ToolResult.FromString(output.wire).is_error if output.wire else output.is_error

    def recorded(self, event: bytes) -> tuple[str, bytes]:
        result = event_pb2.RunEvent.FromString(event).tool_call_completed.result
        return result.call_id, result.SerializeToString(deterministic=True)

    def said(self, text: str, at: datetime) -> Message:
        parts = [message_pb2.Part(text=text.replace("\x00", "\ufffd"))]
        return completed(message_pb2.Message(role=message_pb2.ROLE_USER, parts=parts), at)

    def message(self, results: Sequence[bytes], at: datetime) -> Message:
        message = message_pb2.Message(role=message_pb2.ROLE_TOOL)
        for result in results:
            message.parts.add().tool_result.ParseFromString(result)
        return completed(message, at)


def call_to(call: ToolCall) -> message_pb2.ToolCall:
    return message_pb2.ToolCall(call_id=call.call_id, name=call.name, arguments_json=call.arguments_json)
