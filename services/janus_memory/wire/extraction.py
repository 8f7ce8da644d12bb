"""Extract on the wire, and the report that its operation ends with."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from google.protobuf import json_format

from janus_api.content.v1 import usage_pb2
from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import record_pb2
from janus_kit.validate import Violations
from janus_memory.extract import Wish
from janus_memory.extraction import Entry, Report, Usage
from janus_memory.idempotency import Request
from janus_memory.wire.values import scope_of
from janus_memory.wire.writes import request_of

_MAX_MESSAGES = 256
_MAX_GUIDANCE_BYTES = 4 * 1024


class ExtractCommand(NamedTuple):
    """Extract, decoded."""

    wish: Wish
    request: Request


def extract_command(message: pb.ExtractRequest) -> ExtractCommand:
    """Raises InvalidArgument naming every field that is wrong."""
    check = Violations()
    scope = scope_of(check, "scope", message.scope, thread_required=True)
    few = check.count("message_ids", message.message_ids, at_most=_MAX_MESSAGES)
    for place, message_id in enumerate(message.message_ids if few else ()):
        check.id(f"message_ids[{place}]", message_id)
    check.length("model", message.model, at_most=256)
    check.require(
        len(message.guidance.encode()) <= _MAX_GUIDANCE_BYTES,
        "guidance",
        f"must be at most {_MAX_GUIDANCE_BYTES} bytes of UTF-8",
    )
    check.require("\x00" not in message.guidance, "guidance", "must not contain NUL characters")
    check.id("request_id", message.request_id, optional=True)
    check.done()
    ids = tuple(dict.fromkeys(message.message_ids))
    return ExtractCommand(Wish(scope, ids, message.model, message.guidance), request_of("Extract", message))


def report_to(report: Report) -> Mapping[str, Any]:
    """An ExtractionResult in protobuf's JSON form."""
    result = pb.ExtractionResult(
        memories=map(_entry_to, report.entries),
        usage=_usage_to(report.usage),
        turns=report.turns,
        rejected=report.rejected,
        unusable_turns=report.unusable,
        omitted=report.omitted,
    )
    found: Mapping[str, Any] = json.loads(json_format.MessageToJson(result))
    return found


def _entry_to(entry: Entry) -> pb.ExtractedMemory:
    return pb.ExtractedMemory(
        memory=record_pb2.Memory(
            id=entry.memory_id,
            kind=record_pb2.MemoryKind.ValueType(entry.kind - 1),
            provenance=[record_pb2.Provenance(message_id=entry.message_id)],
        ),
        action=pb.ExtractAction.ValueType(entry.action),
        reason=entry.note,
    )


def _usage_to(usage: Usage) -> usage_pb2.Usage:
    known = usage.source != usage_pb2.USAGE_SOURCE_UNSPECIFIED and usage.cost_micro_usd is not None
    return usage_pb2.Usage(
        input_uncached_tokens=usage.input_uncached_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        output_tokens=usage.output_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        cost_micro_usd=usage.cost_micro_usd if known else None,
        price_version=usage.price_version,
        source=usage_pb2.UsageSource.ValueType(usage.source),
    )
