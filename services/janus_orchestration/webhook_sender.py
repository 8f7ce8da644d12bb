"""Tells webhooks' receivers what became of runs, on every replica.

A delivery is made in the statement that journals its event, and is there until
its receiver answered 2xx or it was given up: nothing is lost, and a replica that
dies in between is followed by another, so a receiver may be told twice, by the
same id. A receiver has so many requests at a time and no more, and whoever is
slow or away costs the others nothing.
"""

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

from janus_kit.clock import Clock
from janus_kit.errors import JanusError
from janus_kit.ids import new_id
from janus_kit.telemetry.logging import get_logger
from janus_kit.version import version
from janus_orchestration import telemetry
from janus_orchestration.ports import Answer, DeliveryQueue, LetterCodec, NotReached, Receivers, Store
from janus_orchestration.webhook import DeliveryClaim, Letter, signature, wait_s

_log = get_logger(__name__)

# What reading, writing and waiting for a connection to Postgres may take beside the request.
_LEASE_BEYOND_S = 15.0
_FORGET_EVERY = 600
_GONE = 410


@dataclass(frozen=True)
class SenderLimits:
    """See OrchestrationSettings; times in seconds."""

    poll_s: float
    timeout_s: float
    at_once: int
    per_webhook: int
    attempts: int
    first_retry_s: float
    longest_retry_s: float


class WebhookSender:
    """Background work of a replica."""

    def __init__(
        self,
        store: Store,
        queue: DeliveryQueue,
        receivers: Receivers,
        codec: LetterCodec,
        clock: Clock,
        limits: SenderLimits,
    ) -> None:
        self._store = store
        self._queue = queue
        self._receivers = receivers
        self._codec = codec
        self._clock = clock
        self._limits = limits
        self._busy: Counter[tuple[str, str]] = Counter()
        self._look = asyncio.Event()

    async def work(self) -> None:
        """Send what is due, for as long as the process lives."""
        rounds = 0
        async with asyncio.TaskGroup() as group:
            group.create_task(self._hear())
            while True:
                self._look.clear()
                try:
                    for claim in await self._claim():
                        self._busy[claim.tenant, claim.webhook] += 1
                        group.create_task(self._send(claim), name=f"webhook-{claim.id}")
                    rounds += 1
                    if rounds % _FORGET_EVERY == 1:
                        await self._queue.forget_dead()
                except JanusError as error:
                    _log.debug("webhooks_wait", reason=error.reason)
                    await asyncio.sleep(self._limits.poll_s)
                await self._pause()

    async def _hear(self) -> None:
        async for _ in self._queue.news():
            self._look.set()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self._limits.poll_s):
                await self._look.wait()
        except TimeoutError:
            pass

    async def _claim(self) -> list[DeliveryClaim]:
        limits = self._limits
        room = limits.at_once - self._busy.total()
        if not room:
            return []
        return await self._queue.claim(room, limits.per_webhook, self._busy, limits.timeout_s + _LEASE_BEYOND_S)

    async def _send(self, claim: DeliveryClaim) -> None:
        """Try a delivery. Never fails: what cannot be settled is tried again when its lease ends."""
        try:
            async with self._store.tenant(claim.tenant) as records:
                letter = await records.letter(claim)
                if letter is None:
                    await records.settle_delivery(claim)
                    return
            began = self._clock.monotonic()
            try:
                answer = await self._post(claim, letter)
            except NotReached as error:
                await self._failed(claim, str(error), 0.0)
            else:
                await self._answered(claim, answer)
            telemetry.webhook_attempt.observe(self._clock.monotonic() - began)
        except JanusError as error:
            _log.warning("webhook_unsettled", tenant=claim.tenant, webhook=claim.webhook, reason=error.reason)
        except Exception:  # noqa: BLE001 - one delivery's fault must not stop the others
            incident = new_id("inc")
            _log.exception("webhook_broke", tenant=claim.tenant, webhook=claim.webhook, incident_id=incident)
            with suppress(JanusError):
                await self._failed(claim, f"internal error; incident {incident}", 0.0)
        finally:
            receiver = claim.tenant, claim.webhook
            self._busy[receiver] -= 1
            if not self._busy[receiver]:
                del self._busy[receiver]
            # It made room: there may be more for the same receiver.
            self._look.set()

    async def _post(self, claim: DeliveryClaim, letter: Letter) -> Answer:
        body = self._codec.body(letter)
        timestamp = int(self._clock.now().timestamp())
        headers = {
            "content-type": "application/json",
            "user-agent": f"janus/{version()}",
            "webhook-id": claim.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(letter.secrets, claim.id, timestamp, body),
        }
        return await self._receivers.post(letter.url, headers, body)

    async def _answered(self, claim: DeliveryClaim, answer: Answer) -> None:
        if 200 <= answer.status < 300:
            async with self._store.tenant(claim.tenant) as records:
                await records.settle_delivery(claim)
            telemetry.webhook_deliveries.labels("delivered").inc()
            _log.info("webhook_delivered", tenant=claim.tenant, webhook=claim.webhook, attempt=claim.attempt)
        else:
            final = answer.status == _GONE
            await self._failed(claim, f"status {answer.status}", answer.retry_after, final=final)

    async def _failed(self, claim: DeliveryClaim, error: str, retry_after: float, *, final: bool = False) -> None:
        limits = self._limits
        dies = final or claim.attempt >= limits.attempts
        async with self._store.tenant(claim.tenant) as records:
            if dies:
                await records.bury_delivery(claim, error)
            else:
                wait = wait_s(
                    claim.attempt, retry_after, first_s=limits.first_retry_s, longest_s=limits.longest_retry_s
                )
                # What the receiver asked for goes for all that it is to be told.
                await records.postpone_delivery(claim, wait, wait if retry_after else 0.0, error)
        telemetry.webhook_deliveries.labels("dead" if dies else "retried").inc()
        (_log.error if dies else _log.warning)(
            "webhook_given_up" if dies else "webhook_failed",
            tenant=claim.tenant,
            webhook=claim.webhook,
            run_id=claim.run_id,
            attempt=claim.attempt,
            error=error,
        )
