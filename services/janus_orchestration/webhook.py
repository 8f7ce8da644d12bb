"""What webhooks tell to whom: their nouns, signatures and waits. Pure."""

import base64
import binascii
import hashlib
import hmac
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

ENDS = ("run_completed", "run_failed", "run_cancelled", "run_expired")
"""How runs end: the kinds of their last events."""
KINDS = (*ENDS, "approval_requested", "input_requested")
"""Kinds of events that may be told."""

_PREFIX = "whsec_"
_GROWTH = 4.0
_LONGEST_RETRY_AFTER_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Webhook:
    """A webhook. ``events`` are kinds; no ``agents`` means all.

    ``secret`` is empty where it was not given, and wherever it is not needed.
    """

    name: str
    url: str
    events: tuple[str, ...]
    agents: tuple[str, ...]
    version: int = 0
    secret: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class WebhookDelivery:
    """Something that a webhook has yet to tell; ``next_attempt`` is None for a dead letter."""

    webhook: str
    run_id: str
    sequence: int
    kind: str
    created_at: datetime
    attempts: int
    next_attempt: datetime | None
    error: str


class DeliveryClaim(NamedTuple):
    """A delivery that this process may try now, for the ``attempt``-th time."""

    tenant: str
    webhook: str
    run_id: str
    sequence: int
    attempt: int

    @property
    def id(self) -> str:
        """The same for every attempt, and wherever the event is told."""
        return delivery_id(self.run_id, self.sequence)


@dataclass(frozen=True, slots=True)
class Letter:
    """A delivery's contents. ``secrets`` are those that may sign, the present one first; ``event`` is in wire form."""

    url: str
    secrets: tuple[bytes, ...] = field(repr=False)
    kind: str
    event: bytes
    thread_id: str
    agent: str
    agent_version: int
    labels: tuple[tuple[str, str], ...]


def delivery_id(run_id: str, sequence: int) -> str:
    return f"{run_id}:{sequence}"


def delivery_place(text: str) -> tuple[str, int] | None:
    """The run and the sequence of a delivery's id; None for what is none."""
    run_id, _, sequence = text.rpartition(":")
    # As many digits as 64 bits have.
    is_number = sequence.isascii() and sequence.isdigit() and len(sequence) < 19
    return (run_id, int(sequence)) if run_id and is_number else None


def secret_from(text: str) -> bytes | None:
    """The bytes of a secret as https://www.standardwebhooks.com writes them; None for what is none."""
    if not text.startswith(_PREFIX):
        return None
    try:
        secret = base64.b64decode(text[len(_PREFIX) :], validate=True)
    except (binascii.Error, ValueError):
        return None
    return secret if 24 <= len(secret) <= 64 else None


def signature(secrets: Sequence[bytes], message_id: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature`: one signature a secret."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return " ".join(
        "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode() for secret in secrets
    )


def wait_s(attempt: int, retry_after_s: float, *, first_s: float, longest_s: float) -> float:
    """Seconds to wait after an attempt that failed: growing, spread, and never less than was asked for."""
    backoff: float = min(first_s * _GROWTH ** min(attempt - 1, 16), longest_s)
    spread = backoff * random.uniform(0.8, 1.2)  # noqa: S311 - spreads senders, guards nothing
    return max(spread, min(retry_after_s, _LONGEST_RETRY_AFTER_S))
