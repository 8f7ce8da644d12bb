"""Webhooks: put, list, delete, and what they have yet to tell. ``webhook_sender`` tells it."""

from dataclasses import replace

from janus_kit.errors import Aborted, InvalidArgument, NotFound, ResourceExhausted
from janus_kit.validate import Violations
from janus_orchestration.agents import DEFAULT_AGENT
from janus_orchestration.idempotency import Once, once
from janus_orchestration.ports import Receivers, Records, Store
from janus_orchestration.webhook import Webhook, WebhookDelivery, delivery_id


class Webhooks:
    """The webhooks of all tenants."""

    def __init__(self, store: Store, receivers: Receivers, *, most: int) -> None:
        self._store = store
        self._receivers = receivers
        self._most = most

    async def put(self, tenant: str, webhook: Webhook, expected_version: int, key: Once[Webhook]) -> Webhook | bytes:
        """Store a webhook; without a secret it keeps the one that it has.

        Raises Aborted / VERSION_MISMATCH when ``expected_version`` (0: any) is
        not the current one, InvalidArgument for a URL that may not be posted to
        and for an agent that is not there, ResourceExhausted when the tenant has
        as many as it may have.
        """
        if rule := self._receivers.broken_rule(webhook.url):
            raise InvalidArgument("webhook.url", rule)
        async with self._store.tenant(tenant) as records:

            async def work() -> Webhook:
                count = await records.lock_webhooks()
                current = await records.webhook(webhook.name)
                version = current.version if current is not None else 0
                if expected_version and expected_version != version:
                    raise Aborted(
                        "VERSION_MISMATCH",
                        f"webhook '{webhook.name}' is at version {version}",
                        {"current_version": str(version)},
                    )
                if current is None and not webhook.secret:
                    raise InvalidArgument("webhook.secret", "must be set for a new webhook")
                if current is None and count >= self._most:
                    raise ResourceExhausted(
                        "QUOTA_EXCEEDED",
                        f"there are {count} webhooks already",
                        quota=("webhooks", f"{self._most} a tenant"),
                    )
                await _require_agents(records, webhook, current)
                stored = replace(webhook, agents=tuple(dict.fromkeys(webhook.agents)), version=version + 1)
                await records.put_webhook(stored)
                return stored

            return await once(records, key, work)

    async def page(self, tenant: str, after: str, size: int) -> tuple[list[Webhook], bool]:
        """Webhooks by name, and whether there are more."""
        async with self._store.tenant(tenant) as records:
            found = await records.webhooks(after, size + 1)
        return found[:size], len(found) > size

    async def delete(self, tenant: str, name: str, key: Once[None]) -> bytes | None:
        """Take a webhook out, with what it has yet to tell. Raises NotFound."""
        async with self._store.tenant(tenant) as records:

            async def work() -> None:
                if not await records.delete_webhook(name):
                    raise NotFound("webhook", name)

            return await once(records, key, work)

    async def deliveries(
        self, tenant: str, webhook: str, dead_only: bool, after: tuple[str, str, int], size: int
    ) -> tuple[list[WebhookDelivery], bool]:
        """Deliveries by webhook and id, and whether there are more. Raises NotFound for a webhook that is not there."""
        async with self._store.tenant(tenant) as records:
            if webhook and await records.webhook(webhook) is None:
                raise NotFound("webhook", webhook)
            found = await records.deliveries(webhook, dead_only, after, size + 1)
        return found[:size], len(found) > size

    async def retry(self, tenant: str, webhook: str, only: tuple[str, int] | None, key: Once[int]) -> int | bytes:
        """Try one delivery (run, sequence) again, or all dead letters; how many. Raises NotFound."""
        async with self._store.tenant(tenant) as records:

            async def work() -> int:
                if await records.webhook(webhook) is None:
                    raise NotFound("webhook", webhook)
                count = await records.retry_deliveries(webhook, only)
                if only is not None and not count:
                    raise NotFound("delivery", delivery_id(*only))
                return count

            return await once(records, key, work)


async def _require_agents(records: Records, webhook: Webhook, current: Webhook | None) -> None:
    """Those that it named before may be gone: their runs go on."""
    there = {DEFAULT_AGENT, *await records.purposes(webhook.agents), *(current.agents if current is not None else ())}
    check = Violations()
    for place, agent in enumerate(webhook.agents):
        check.require(agent in there, f"webhook.agents[{place}]", "must be an agent that exists")
    check.done()
