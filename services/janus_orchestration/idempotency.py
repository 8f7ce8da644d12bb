"""Writes that a caller may repeat: one request id, one effect, one answer."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from janus_orchestration.ports import RequestRecords

T = TypeVar("T")


@dataclass(frozen=True)
class Once(Generic[T]):
    """A caller's request id. ``body_hash`` is of the whole request; ``encode`` makes the answer."""

    method: str
    request_id: str
    body_hash: bytes
    encode: Callable[[T], bytes]


async def once(records: RequestRecords, key: Once[T], work: Callable[[], Awaitable[T]]) -> T | bytes:
    """Do the work, or give the stored answer, in the transaction of ``records``.

    Raises AlreadyExists / REQUEST_ID_REUSED for another body. An empty request
    id is not deduplicated.
    """
    if not key.request_id:
        return await work()
    stored = await records.answered(key.method, key.request_id, key.body_hash, b"")
    if stored is not None:
        return stored
    result = await work()
    await records.set_answer(key.method, key.request_id, key.encode(result))
    return result
