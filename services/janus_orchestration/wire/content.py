"""Messages, usage, times and JSON: what several requests have in common."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message as Protobuf
from google.protobuf.timestamp_pb2 import Timestamp

from janus_api.content.v1 import message_pb2, usage_pb2
from janus_kit.ids import new_id
from janus_kit.json_schema.rules import BrokenRule, read
from janus_kit.validate import Violations
from janus_orchestration.model import MOST_BYTES, Message, Role, Usage

M = TypeVar("M", bound=Protobuf)

MAX_TEXT_BYTES = 1024 * 1024
MOST_PARTS = 1024
MAX_MEDIA_BYTES = 3 * 1024 * 1024
MAX_JSON_BYTES = 16 * 1024
MAX_JSON_DEPTH = 8
_MIN_TIME, _MAX_TIME = timedelta(milliseconds=10), timedelta(days=1)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_ROLES = {
    message_pb2.ROLE_SYSTEM: Role.SYSTEM,
    message_pb2.ROLE_USER: Role.USER,
    message_pb2.ROLE_ASSISTANT: Role.ASSISTANT,
    message_pb2.ROLE_TOOL: Role.TOOL,
}
ROLE_NUMBERS = {role: number for number, role in _ROLES.items()}

_USER_PARTS = frozenset({"text", "image", "audio", "document"})
_ASSISTANT_PARTS = frozenset({"text", "reasoning", "refusal", "citation", "opaque"})
_RESULT_PARTS = frozenset({"text", "image", "document"})
_MOST_RESULT_PARTS = 64


def messages_from(
    check: Violations,
    path: str,
    sent: Sequence[message_pb2.Message],
    *,
    at_least: int = 0,
    at_most: int,
    roles: Collection[Role],
    now: datetime,
) -> list[Message]:
    """Messages with their id and time filled in; call ``check.done()`` before use.

    Too many are refused by their number, without a look at them.
    """
    if not check.count(path, sent, at_least=at_least, at_most=at_most):
        return []
    found: list[Message] = []
    seen: set[str] = set()
    for index, message in enumerate(sent):
        where = f"{path}[{index}]"
        check_message(check, where, message, roles)
        if message.id:
            check.require(message.id not in seen, f"{where}.id", "must be unique in the request")
            seen.add(message.id)
        if not check:
            found.append(completed(message, now))
    return found


def completed(message: message_pb2.Message, now: datetime) -> Message:
    """The message with an id and a time, as it will be kept."""
    kept = message_pb2.Message()
    kept.CopyFrom(message)
    if not kept.id:
        kept.id = new_id("msg")
    if not kept.HasField("created_at"):
        kept.created_at.CopyFrom(timestamp(now))
    return Message(
        id=kept.id,
        role=_ROLES[kept.role],
        # Postgres's text holds no NUL; the message itself is kept as it is.
        text=text_of(kept).replace("\x00", "\ufffd"),
        wire=kept.SerializeToString(deterministic=True),
        name=kept.name,
    )


def fitting(messages: Iterable[M]) -> list[M]:
    """As many messages as one response may hold, and always the first."""
    kept: list[M] = []
    size = 0
    for message in messages:
        size += message.ByteSize()
        if kept and size > MOST_BYTES:
            break
        kept.append(message)
    return kept


def text_of(message: message_pb2.Message) -> str:
    """The text parts, one a line."""
    return "\n".join(part.text for part in message.parts if part.WhichOneof("kind") == "text")


def check_message(check: Violations, where: str, message: message_pb2.Message, roles: Collection[Role]) -> None:
    """Record what is wrong with a message of one of these roles."""
    role = _ROLES.get(message.role)
    check.require(
        role in roles,
        f"{where}.role",
        "must be " + " or ".join(f"ROLE_{role.name}" for role in sorted(roles, reverse=True)),
    )
    if not check.count(f"{where}.parts", message.parts, at_least=1, at_most=MOST_PARTS):
        return
    check.length(f"{where}.name", message.name, at_most=128)
    check.id(f"{where}.id", message.id, optional=True)
    if message.HasField("created_at"):
        check_timestamp(check, f"{where}.created_at", message.created_at)
    allowed = _USER_PARTS if role is Role.USER else _ASSISTANT_PARTS
    for index, part in enumerate(message.parts):
        _check_part(check, f"{where}.parts[{index}]", part, allowed)


def check_tool_result(check: Violations, where: str, result: message_pb2.ToolResult) -> None:
    """A result as a client gives it. One that says nothing is fine."""
    check.length(f"{where}.call_id", result.call_id, at_least=1, at_most=128)
    if check.count(f"{where}.parts", result.parts, at_most=_MOST_RESULT_PARTS):
        for index, part in enumerate(result.parts):
            _check_part(check, f"{where}.parts[{index}]", part, _RESULT_PARTS, may_be_blank=True)


def _check_part(
    check: Violations, where: str, part: message_pb2.Part, allowed: frozenset[str], *, may_be_blank: bool = False
) -> None:
    kind = part.WhichOneof("kind")
    if not check.require(kind in allowed, where, f"must be one of {', '.join(sorted(allowed))}"):
        return
    if kind == "text":
        if check.require(may_be_blank or bool(part.text.strip()), f"{where}.text", "must not be blank"):
            check.require("\x00" not in part.text, f"{where}.text", "must not contain NUL characters")
            check.require(len(part.text.encode()) <= MAX_TEXT_BYTES, f"{where}.text", "must be at most 1 MiB of UTF-8")
    elif kind in ("image", "audio"):
        _check_media(check, f"{where}.{kind}", getattr(part, kind))
    elif kind == "document":
        check.length(f"{where}.document.title", part.document.title, at_most=256)
        _check_media(check, f"{where}.document.media", part.document.media)


def _check_media(check: Violations, where: str, media: message_pb2.Media) -> None:
    source = media.WhichOneof("source")
    if not check.present(where, source is not None):
        return
    if source == "data":
        check.size(f"{where}.data", media.data, at_least=1, at_most=MAX_MEDIA_BYTES)
        check.length(f"{where}.mime_type", media.mime_type, at_least=3, at_most=128)
    else:
        check.length(f"{where}.uri", media.uri, at_least=1, at_most=2_048)
        check.require(media.uri.startswith("https://"), f"{where}.uri", "must be an https URL")


def pieces(text: str, most_bytes: int = MAX_TEXT_BYTES) -> Iterator[str]:
    """The text in pieces of at most so many bytes of UTF-8, cut between code points."""
    raw = text.encode()
    start = 0
    while len(raw) - start > most_bytes:
        end = start + most_bytes
        while raw[end] & 0xC0 == 0x80:
            end -= 1
        yield raw[start:end].decode()
        start = end
    yield raw[start:].decode()


def check_json_object(check: Violations, where: str, text: str) -> None:
    """A client's own data: an object, bounded in size and depth. Empty: none."""
    if not text:
        return
    if not check.require(len(text.encode()) <= MAX_JSON_BYTES, where, "must be at most 16 KiB"):
        return
    try:
        value = read(text, MAX_JSON_DEPTH)
    except BrokenRule as broken:
        check.add(where, str(broken))
        return
    check.require(isinstance(value, dict), where, "must be a JSON object")
    check.require("\\u0000" not in text and "\x00" not in text, where, "must not contain NUL characters")


def timestamp(moment: datetime) -> Timestamp:
    # By hand: the library's way costs twice as much, and every event has one.
    since = moment - _EPOCH
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1_000)


def check_timestamp(check: Violations, where: str, stamp: Timestamp) -> None:
    """Within the years 1 to 9999."""
    try:
        stamp.ToDatetime(UTC)
    except (ValueError, OverflowError):
        check.add(where, "must be a valid time")


def moment_of(stamp: Timestamp) -> datetime | None:
    """None for a time that no calendar has."""
    try:
        return stamp.ToDatetime(UTC)
    except (ValueError, OverflowError):
        return None


def duration(delta: timedelta) -> Duration:
    value = Duration()
    value.FromTimedelta(delta)
    return value


def time_of(
    check: Violations,
    where: str,
    message: Any,
    field: str,
    bounds: tuple[timedelta, timedelta, str] = (_MIN_TIME, _MAX_TIME, "10 ms to 24 h"),
) -> timedelta | None:
    """A time within bounds, those for work unless told; None when it is not set."""
    least, most, rule = bounds
    if not message.HasField(field):
        return None
    try:
        found: timedelta = getattr(message, field).ToTimedelta()
    except (ValueError, OverflowError):
        found = timedelta()
    check.require(least <= found <= most, where, f"must be {rule}")
    return found


def usage_to(usage: Usage) -> usage_pb2.Usage:
    return usage_pb2.Usage(
        input_uncached_tokens=usage.input_uncached,
        cache_read_tokens=usage.cache_read,
        cache_write_tokens=usage.cache_write,
        output_tokens=usage.output,
        reasoning_tokens=usage.reasoning,
        cost_micro_usd=usage.cost_micro_usd,
        price_version=usage.price_version,
        source=usage_pb2.UsageSource.ValueType(usage.source),
    )


def usage_from(usage: usage_pb2.Usage) -> Usage:
    return Usage(
        input_uncached=usage.input_uncached_tokens,
        cache_read=usage.cache_read_tokens,
        cache_write=usage.cache_write_tokens,
        output=usage.output_tokens,
        reasoning=usage.reasoning_tokens,
        cost_micro_usd=usage.cost_micro_usd if usage.HasField("cost_micro_usd") else None,
        price_version=usage.price_version,
        source=usage.source,
    )
