"""Threads, their messages and pages: decode, check, encode."""

import base64
import binascii
import hashlib
import json
from datetime import datetime
from typing import TypeVar

from google.protobuf.message import Message as Protobuf

from janus_api.content.v1 import message_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_api.orchestration.v1 import thread_pb2
from janus_kit.errors import InvalidArgument
from janus_kit.ids import new_id
from janus_kit.validate import Violations
from janus_orchestration.model import Message, Role, Thread, ThreadMessage
from janus_orchestration.wire.content import check_json_object, messages_from, timestamp

T = TypeVar("T", bound=Protobuf)

_MAX_PAGE = 1_000
_DEFAULT_PAGE = 100
_SEAL_BYTES = 9


def thread_from(request: pb.CreateThreadRequest, now: datetime) -> tuple[Thread, list[Message]]:
    """A checked thread and the messages that it starts with."""
    thread = request.thread
    check = Violations()
    check.id("thread.id", thread.id, optional=True)
    check.id("thread.agent", thread.agent, optional=True)
    check.id("thread.subject", thread.subject, optional=True)
    check.length("thread.title", thread.title, at_most=256)
    check_json_object(check, "thread.metadata_json", thread.metadata_json)
    roles = (Role.USER, Role.ASSISTANT)
    messages = messages_from(check, "messages", request.messages, at_most=256, roles=roles, now=now)
    check.done()
    return (
        Thread(
            id=thread.id or new_id("thr"),
            agent=thread.agent,
            subject=thread.subject,
            title=thread.title,
            metadata_json=thread.metadata_json,
            created_at=now,
            updated_at=now,
        ),
        messages,
    )


def thread_to(thread: Thread) -> thread_pb2.Thread:
    return thread_pb2.Thread(
        id=thread.id,
        agent=thread.agent,
        subject=thread.subject,
        title=thread.title,
        metadata_json=thread.metadata_json,
        created_at=timestamp(thread.created_at),
        updated_at=timestamp(thread.updated_at),
        forked_from_thread_id=thread.forked_from,
        forked_at_message_id=thread.forked_at,
        active_run_id=thread.active_run,
        parent_run_id=thread.parent_run,
    )


def thread_message_to(item: ThreadMessage) -> thread_pb2.ThreadMessage:
    return thread_pb2.ThreadMessage(
        message=message_pb2.Message.FromString(item.message.wire),
        position=item.position,
        # What a client put is not the run's work.
        run_id=item.run_id if item.is_output else "",
    )


def page_size(size: int) -> int:
    """1 to 1,000; 0 means 100."""
    check = Violations()
    check.between("page_size", size, 0, _MAX_PAGE)
    check.done()
    return size or _DEFAULT_PAGE


def page_token(place: str | int, *query: str) -> str:
    """A token for the page after ``place``, good for this query only.

    ``query`` is the tenant, the method and whatever filters. The seal finds
    mistakes; what a forged token could reach, its forger may read anyway.
    """
    body = json.dumps(place).encode()
    return base64.urlsafe_b64encode(_seal(body, query) + body).decode().rstrip("=")


def page_place(token: str, start: str | int, *query: str) -> str | int:
    """Where a token's page begins; ``start`` without one. Raises InvalidArgument."""
    if not token:
        return start
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        seal, body = raw[:_SEAL_BYTES], raw[_SEAL_BYTES:]
        place = json.loads(body) if seal == _seal(body, query) else None
    except (ValueError, binascii.Error):
        place = None
    if not isinstance(place, type(start)):
        raise _invalid_token()
    return place


def moment_token(at: datetime, item_id: str, *query: str) -> str:
    """A token for the page after what happened at a time, and has an id."""
    return page_token(f"{at.isoformat()} {item_id}", *query)


def moment_place(token: str, *query: str) -> tuple[datetime, str] | None:
    """Where a token's page begins; None without one. Raises InvalidArgument."""
    place = str(page_place(token, "", *query))
    if not place:
        return None
    at, _, item_id = place.partition(" ")
    try:
        moment = datetime.fromisoformat(at)
    except ValueError:
        raise _invalid_token() from None
    if moment.tzinfo is None or "\x00" in item_id:
        raise _invalid_token()
    return moment, item_id


def _invalid_token() -> InvalidArgument:
    return InvalidArgument("page_token", "must be a token that this query returned", reason="PAGE_TOKEN_INVALID")


def _seal(body: bytes, query: tuple[str, ...]) -> bytes:
    return hashlib.sha256(body + json.dumps(query).encode()).digest()[:_SEAL_BYTES]
