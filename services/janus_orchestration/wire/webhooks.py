"""Webhooks: decode, check, encode; and what their receivers read."""

import json
from typing import Any

from google.protobuf.json_format import MessageToDict

from janus_api.orchestration.v1 import event_pb2
from janus_api.orchestration.v1 import webhook_pb2 as pb
from janus_kit.validate import Violations
from janus_orchestration.webhook import (
    ENDS,
    KINDS,
    Letter,
    Webhook,
    WebhookDelivery,
    delivery_id,
    delivery_place,
    secret_from,
)
from janus_orchestration.wire.content import timestamp

_EVENTS = {kind: pb.WebhookEvent.Value(f"WEBHOOK_EVENT_{kind.upper()}") for kind in KINDS}
_KINDS = {number: kind for kind, number in _EVENTS.items()}
_MOST_AGENTS = 32
_MOST_BODY_BYTES = 256 * 1024


def webhook_from(webhook: pb.Webhook, is_set: bool) -> Webhook:
    """A checked webhook. Raises InvalidArgument; whether its URL may be posted to is for others to say."""
    check = Violations()
    if not check.present("webhook", is_set):
        check.done()
    check.id("webhook.name", webhook.name)
    check.length("webhook.url", webhook.url, at_least=1, at_most=2_048)
    if check.count("webhook.events", webhook.events, at_most=len(_EVENTS)):
        for index, event in enumerate(webhook.events):
            check.specified(f"webhook.events[{index}]", event, _KINDS)
        check.require(len(set(webhook.events)) == len(webhook.events), "webhook.events", "must be unique")
    if check.count("webhook.agents", webhook.agents, at_most=_MOST_AGENTS):
        for index, agent in enumerate(webhook.agents):
            check.id(f"webhook.agents[{index}]", agent)
    secret = secret_from(webhook.secret)
    check.require(
        not webhook.secret or secret is not None,
        "webhook.secret",
        "must be 'whsec_' and the base64 of 24 to 64 bytes",
    )
    check.done()
    return Webhook(
        name=webhook.name,
        url=webhook.url,
        events=tuple(_KINDS[event] for event in webhook.events) or ENDS,
        agents=tuple(webhook.agents),
        secret=secret or b"",
    )


def webhook_to(webhook: Webhook) -> pb.Webhook:
    """Without its secret, always."""
    return pb.Webhook(
        name=webhook.name,
        url=webhook.url,
        events=[_EVENTS[kind] for kind in webhook.events],
        agents=webhook.agents,
        version=webhook.version,
    )


def delivery_to(delivery: WebhookDelivery) -> pb.WebhookDelivery:
    message = pb.WebhookDelivery(
        id=delivery_id(delivery.run_id, delivery.sequence),
        webhook=delivery.webhook,
        event=_EVENTS[delivery.kind],
        run_id=delivery.run_id,
        created_at=timestamp(delivery.created_at),
        attempts=delivery.attempts,
        dead=delivery.next_attempt is None,
        last_error=delivery.error,
    )
    if delivery.next_attempt is not None:
        message.next_attempt_at.CopyFrom(timestamp(delivery.next_attempt))
    return message


def delivery_from(name: str, text: str) -> tuple[str, int] | None:
    """The run and the sequence of one delivery of a webhook; None for all that are dead."""
    check = Violations()
    check.id("webhook", name)
    place = delivery_place(text)
    check.require(not text or place is not None, "delivery_id", "must be an id of ListWebhookDeliveries")
    check.done()
    return place


def place_to(delivery: WebhookDelivery) -> str:
    """Where a page ended, for its token."""
    return f"{delivery.webhook}\n{delivery_id(delivery.run_id, delivery.sequence)}"


def place_from(text: str) -> tuple[str, str, int]:
    webhook, _, delivery = text.partition("\n")
    return (webhook, *(delivery_place(delivery) or ("", 0)))


class JsonLetters:
    """Implements ports.LetterCodec. The same letter is the same bytes, however often it is sent."""

    def body(self, letter: Letter) -> bytes:
        event = event_pb2.RunEvent.FromString(letter.event)
        value: dict[str, Any] = {
            "type": letter.kind.replace("_", "."),
            "timestamp": event.at.ToJsonString(),
            "data": {
                "run_id": event.run_id,
                "thread_id": letter.thread_id,
                "agent": letter.agent,
                "agent_version": letter.agent_version,
                "labels": dict(letter.labels),
                "event": MessageToDict(event, preserving_proto_field_name=True),
            },
        }
        body = _json(value)
        if len(body) > _MOST_BODY_BYTES:
            value["data"]["event"] = None
            body = _json(value)
        return body


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
