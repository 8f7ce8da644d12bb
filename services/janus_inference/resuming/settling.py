"""What a generation used whose owner is gone: on record before its end is told.

The owner's process held the record. What it would have said is in the replay:
who was asked, what was heard and, for what only the prompt tells, the pledge
that was made when the generation began. The key is the attempt, so that
several readers who find the owner gone count it once.
"""

from collections.abc import Awaitable, Callable

from janus_inference import accounting
from janus_inference.events import Cost, RouteChanged, Started, Usage, UsageUpdated
from janus_inference.model import Caller
from janus_inference.ports import ReplayHead, ReplayStore, UsageRecord
from janus_inference.resuming import ending
from janus_inference.telemetry import broken_off_total
from janus_kit.clock import Clock
from janus_kit.errors import JanusError
from janus_kit.telemetry.logging import get_logger

_log = get_logger(__name__)

Key = tuple[str, str]
Record = Callable[[UsageRecord], Awaitable[object]]
Price = Callable[[str, str, Usage], Cost | None]


class Settling:
    """``record`` commits a record or raises JanusError; ``price`` is by provider, model and usage."""

    def __init__(self, store: ReplayStore, record: Record, price: Price, clock: Clock) -> None:
        self._store, self._record, self._price, self._clock = store, record, price, clock

    async def settled(self, key: Key, head: ReplayHead) -> tuple[Usage, Cost | None] | None:
        """What was used, once it is on record; None when nobody was asked or no pledge is known. Raises ReplayAway."""
        if head.pledge is None:
            return None
        tenant, generation_id = key
        provider = model = ""
        attempt = heard = position = 0
        said: Usage | None = None
        at_list_price = head.pledge.at_list_price
        while position < head.last and (page := await self._store.page(tenant, generation_id, position)):
            position = page[-1].sequence
            for numbered in page:
                match numbered.event:
                    case Started() as started:
                        provider, model, attempt = started.provider, started.model, started.attempt
                    case RouteChanged(to=to, attempt=number):
                        (provider, _, model), attempt, heard, said = to.partition("/"), number, 0, None
                    case UsageUpdated(usage=usage, cost=cost):
                        said, at_list_price = usage, at_list_price and cost is not None
                    case event:
                        heard += accounting.said_bytes(event)
        if not attempt:
            return None
        usage = accounting.so_far(said, accounting.estimate(head.pledge.prompt_tokens, heard))
        cost = self._price(provider, model, usage) if at_list_price else None
        now = self._clock.now()
        record = UsageRecord(
            caller=Caller(tenant, head.pledge.subject),
            generation_id=generation_id,
            attempt=attempt,
            operation="chat",
            provider=provider,
            model=model,
            labels=head.pledge.labels,
            started_at=head.pledge.started_at,
            duration_s=max(0.0, (now - head.pledge.started_at).total_seconds()),
            outcome="owner_gone",
            usage=usage,
            cost=cost,
        )
        try:
            await self._record(record)
        except JanusError as error:
            # It is kept, and written when Postgres is back.
            _log.warning("generation_not_settled", generation_id=generation_id, reason=error.reason)
        return usage, cost


async def break_off(store: ReplayStore, settling: Settling | None, key: Key, head: ReplayHead) -> None:
    """End it for an owner that is gone; what was used is on record before that is told. Raises ReplayAway."""
    # First of all: an owner that comes back must not go on and have its true record refused for this one.
    if not await store.fence(*key, head.last):
        return
    why = ending.owner_gone()
    _log.warning("generation_owner_gone", generation_id=key[1], last_sequence=head.last)
    broken_off_total.labels(why.cause).inc()
    used = await settling.settled(key, head) if settling is not None else None
    usage, cost = used or (ending.UNKNOWN, None)
    await store.break_off(*key, why.after(head.last, spoken=head.has_spoken, usage=usage, cost=cost))
