"""A write that is sent twice happens once, and answers the same."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from janus_kit.errors import AlreadyExists
from janus_memory.ports import Transaction


class Request(NamedTuple):
    """A write's identity: its method, the client's id (empty: none) and the digest of its body.

    ``subjects``: whose records it is about; their erasure removes its answer.
    """

    method: str
    id: str
    body: bytes
    subjects: tuple[str, ...] = ()


async def claimed(tx: Transaction, request: Request) -> Mapping[str, Any] | None:
    """Take the request's id; or what it was answered before, which is empty while that is not known.

    Raises AlreadyExists / REQUEST_ID_REUSED when the id came with another body
    in the last 24 h.
    """
    stored = await tx.claim_request(request.method, request.id, request.body, request.subjects)
    if stored is None:
        return None
    if stored.body != request.body:
        raise AlreadyExists(
            "REQUEST_ID_REUSED",
            f"request_id '{request.id}' was used with another body",
            "request",
            request.id,
        )
    return stored.answer


async def once(
    tx: Transaction, request: Request, work: Callable[[], Awaitable[Mapping[str, Any]]]
) -> tuple[Mapping[str, Any], bool]:
    """The answer of ``work``, done now or before; and whether it was done before.

    The claim, the work and the answer commit together, so a crash leaves all
    or nothing. The answer is JSON. Raises AlreadyExists / REQUEST_ID_REUSED
    when the id came with another body in the last 24 h.
    """
    if not request.id:
        return await work(), False
    stored = await claimed(tx, request)
    if stored is not None:
        return stored, True
    answer = await work()
    await tx.answer_request(request.method, request.id, answer)
    return answer, False
