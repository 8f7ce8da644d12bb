"""Erase, decoded, and its receipt, encoded."""

from dataclasses import dataclass

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_kit.validate import Violations
from janus_memory.erasure import Receipt
from janus_memory.idempotency import Request
from janus_memory.wire.values import stamp
from janus_memory.wire.writes import request_of


@dataclass(frozen=True)
class EraseCommand:
    """Erase, decoded. An empty space stands for all."""

    subject: str
    space: str
    reason: str
    request: Request


def erase_command(message: pb.EraseRequest) -> EraseCommand:
    """Raises InvalidArgument naming every field that is wrong."""
    check = Violations()
    scope = message.scope
    check.id("scope.space", scope.space, optional=True)
    check.id("scope.subject", scope.subject)
    check.require(not scope.agent, "scope.agent", "must be empty")
    check.require(not scope.thread, "scope.thread", "must be empty")
    check.id("request_id", message.request_id, optional=True)
    check.length("reason", message.reason, at_most=1_024)
    check.done()
    # The stored answer says nothing of the subject, and outlives its erasure.
    request = request_of("Erase", message)._replace(subjects=())
    return EraseCommand(scope.subject, scope.space, message.reason, request)


def receipt_to(receipt: Receipt) -> pb.EraseReceipt:
    """The receipt; its signature is over this without `signature` and `key_id`."""
    return pb.EraseReceipt(
        id=receipt.id,
        erased_at=stamp(receipt.erased_at),
        counts=[pb.EraseCount(store=store, removed=count) for store, count in sorted(receipt.removed.items())],
        reason=receipt.reason,
        signature=receipt.signature,
        key_id=receipt.key_id,
    )
