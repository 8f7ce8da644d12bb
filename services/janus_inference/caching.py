"""The exact response cache: the same question of the same tenant, answered once.

Two prompts are the same when everything that can change the answer is; what
only says how, when and for whom to ask is left out. Whole answers alone are
kept: one that was cut short, filtered, refused or paused is worth another try,
and so is one whose tool calls are not valid.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from enum import Enum

from janus_inference.events import (
    Event,
    Finished,
    FinishReason,
    Numbered,
    RouteChanged,
    Started,
    Timings,
    ToolCallCompleted,
    Usage,
    UsageUpdated,
)
from janus_inference.model import Caller, Prompt
from janus_inference.ports import AnswerStore, EventCodec
from janus_inference.telemetry import cache_total
from janus_kit.clock import Clock, SystemClock
from janus_kit.errors import Unavailable

DEFAULT_MAX_AGE_S = timedelta(days=1).total_seconds()
# No answer is kept longer, whatever age a later prompt would accept.
KEPT_S = timedelta(days=30).total_seconds()

# Changes whenever the same prompt would be digested, or its answer stored, in another way.
_SALT = b"janus answer 1"
_STORED_AT = struct.Struct(">Q")
_KEPT_REASONS = frozenset({FinishReason.STOP, FinishReason.TOOL_CALLS, FinishReason.STOP_SEQUENCE})
# Fields, at any depth, that cannot change the answer. Everything else counts,
# so that a field added to the prompt can cost a hit but never give a wrong one.
_IRRELEVANT: dict[str, frozenset[str]] = {
    "Prompt": frozenset({"model", "timeouts", "routing", "cache", "labels", "resumable", "linger", "request_id"}),
    "Message": frozenset({"id"}),
}
_NEVER = "cache_breakpoint"


class AnswerCache:
    """Reads and writes answers as the prompt's cache policy says; never fails a call.

    ``most_bytes`` is the largest answer that is kept, as stored.
    """

    def __init__(self, store: AnswerStore, codec: EventCodec, *, most_bytes: int, clock: Clock | None = None) -> None:
        self._store = store
        self._codec = codec
        self._most_bytes = most_bytes
        self._clock = clock or SystemClock()

    async def get(self, caller: Caller, prompt: Prompt, targets: Sequence[str]) -> tuple[Event, ...] | None:
        """The events of a finished answer, None on a miss, when reading is not asked for, or without Redis.

        The first is Started, of the generation that was stored and with the
        provider and model that answered; the last is Finished with
        ``from_cache``, no usage, no cost and no time: nothing was used. There
        is no RouteChanged and no UsageUpdated among them.
        """
        if not prompt.cache.read:
            return None
        try:
            data = await self._store.get(caller.tenant, digest(caller.tenant, prompt, targets))
        except Unavailable:
            cache_total.labels("unavailable").inc()
            return None
        found = self._read(data, prompt) if data is not None else None
        cache_total.labels("miss" if found is None else "hit").inc()
        return found

    async def put(self, caller: Caller, prompt: Prompt, targets: Sequence[str], events: Sequence[Event]) -> None:
        """Keep an answer, Started to Finished, if writing is asked for and it is whole. Best effort."""
        if not prompt.cache.write or not _is_worth_keeping(events):
            return
        kept = [Numbered(number, event) for number, event in enumerate(_without_its_making(events), 1)]
        data = _STORED_AT.pack(self._now_ms()) + self._codec.dump(kept)
        if len(data) > self._most_bytes:
            cache_total.labels("too_large").inc()
            return
        try:
            await self._store.put(caller.tenant, digest(caller.tenant, prompt, targets), data, KEPT_S)
        except Unavailable:
            cache_total.labels("unavailable").inc()
            return
        cache_total.labels("stored").inc()

    def _read(self, data: bytes, prompt: Prompt) -> tuple[Event, ...] | None:
        try:
            (stored_at,) = _STORED_AT.unpack_from(data)
            numbered = self._codec.load(data[_STORED_AT.size :])
        except (struct.error, ValueError):
            return None  # another version's
        max_age = prompt.cache.max_age if prompt.cache.max_age is not None else DEFAULT_MAX_AGE_S
        if self._now_ms() - stored_at > max_age * 1000:
            return None
        events = tuple(each.event for each in numbered)
        if not events or not isinstance(events[0], Started) or not isinstance(events[-1], Finished):
            return None
        return events

    def _now_ms(self) -> int:
        return round(self._clock.now().timestamp() * 1000)


def digest(tenant: str, prompt: Prompt, targets: Sequence[str]) -> str:
    """SHA-256, in hex, of all that decides the answer; the tenant is in it as well."""
    found = hashlib.sha256(_SALT)
    _feed(found, tenant)
    _feed(found, tuple(targets))
    _feed(found, prompt)
    return found.hexdigest()


def _feed(into: "hashlib._Hash", value: object) -> None:
    """Every value with its kind and its length, so that no two prompts run into the same bytes."""
    match value:
        case None:
            _put(into, b"n", b"")
        case bool():
            _put(into, b"b", b"1" if value else b"0")
        case int() | float():
            # One number in two types is one number.
            _put(into, b"f", repr(float(value)).encode() if abs(value) < 2**53 else str(value).encode())
        case str():
            _put(into, b"s", value.encode("utf-8", "surrogatepass"))
        case bytes():
            _put(into, b"y", value)
        case Enum():
            _put(into, b"e", f"{type(value).__name__}.{value.name}".encode())
        case tuple() | list():
            _put(into, b"l", str(len(value)).encode())
            for each in value:
                _feed(into, each)
        case _ if is_dataclass(value) and not isinstance(value, type):
            kind = type(value).__name__
            left_out = _IRRELEVANT.get(kind, frozenset())
            _put(into, b"d", kind.encode())
            for field in fields(value):
                if field.name not in left_out and field.name != _NEVER:
                    _put(into, b"k", field.name.encode())
                    _feed(into, getattr(value, field.name))
            _put(into, b"z", b"")
        case _:
            raise TypeError(f"a prompt has no value of the kind {type(value).__name__}")


def _put(into: "hashlib._Hash", kind: bytes, data: bytes) -> None:
    into.update(b"%b%d:" % (kind, len(data)))
    into.update(data)


def _is_worth_keeping(events: Sequence[Event]) -> bool:
    if not events or not isinstance(events[0], Started):
        return False
    last = events[-1]
    if not isinstance(last, Finished) or last.reason not in _KEPT_REASONS or last.from_cache:
        return False
    calls = [event for event in events if isinstance(event, ToolCallCompleted)]
    return all(call.valid_json and call.valid_schema for call in calls)


def _without_its_making(events: Sequence[Event]) -> list[Event]:
    """The answer without how it came about: which attempts were made, what they used, how long they took."""
    kept: list[Event] = []
    for event in events:
        match event:
            case RouteChanged(to=to):
                provider, _, model = to.partition("/")
                first = kept[0]
                assert isinstance(first, Started)
                kept[0] = replace(first, provider=provider, model=model)
            case UsageUpdated():
                pass
            case Finished():
                kept.append(replace(event, usage=Usage(), cost=None, timings=Timings(0.0, 0.0, 0.0), from_cache=True))
            case Started():
                kept.append(replace(event, attempt=1))
            case _:
                kept.append(event)
    return kept
