"""Webhooks: who is told what, signed; tried again, given up, and kept away from where they may not reach."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
import shutil
import ssl
import time
from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.fakes.orchestration_service import (
    Caller,
    Orchestration,
    all_events,
    eventually,
    processes,
    running,
)
from tests.fakes.patience import patient_postgres
from tests.fakes.peers.inference_peer import InferencePeer, inference_peer
from tests.fakes.webhook_receiver import Received, Receiver, webhook_receiver

from janus_api.orchestration.v1 import event_pb2, run_pb2, webhook_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_kit.errors import Aborted, InvalidArgument, JanusError, NotFound, ResourceExhausted, Unavailable
from janus_kit.postgres import database
from janus_kit.rpc_errors import from_rpc
from janus_orchestration import webhook_sender
from janus_orchestration.adapters.postgres_journal import PostgresStore
from janus_orchestration.model import Cursor, Recorded

SECRET = bytes(range(32))
OTHER = bytes(range(32, 64))
SETTINGS: dict[str, Any] = {
    "webhook_networks": ["127.0.0.0/8"],
    "webhook_poll_s": 0.1,
    "webhook_first_retry_s": 0.05,
    "webhook_longest_retry_s": 0.1,
    "webhook_attempts": 3,
    "webhook_timeout_s": 20,
    "webhook_concurrency": 2,
    "max_webhooks_per_tenant": 3,
}


def written(secret: bytes) -> str:
    return "whsec_" + base64.b64encode(secret).decode()


@pytest.fixture
async def peer() -> AsyncIterator[InferencePeer]:
    async with inference_peer() as running_peer:
        running_peer.always = ("done",)
        yield running_peer


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with webhook_receiver() as answering:
        yield answering


@pytest.fixture
async def service(own_url: str, redis_url: str, peer: InferencePeer) -> AsyncIterator[Orchestration]:
    async with running(own_url, redis_url, inference_target=peer.target, **SETTINGS) as serving:
        yield serving


@pytest.fixture
async def ann(service: Orchestration) -> Caller:
    caller = service.caller()
    await caller.agent()
    return caller


async def put(caller: Caller, url: str, name: str = "hook", **fields: Any) -> webhook_pb2.Webhook:
    expected = fields.pop("expected_version", 0)
    values = {"secret": written(SECRET), **fields}
    request = pb.PutWebhookRequest(webhook=webhook_pb2.Webhook(name=name, url=url, **values), expected_version=expected)
    return (await caller.call("PutWebhook", request)).webhook


async def deliveries(caller: Caller, **fields: Any) -> list[webhook_pb2.WebhookDelivery]:
    answer = await caller.call("ListWebhookDeliveries", pb.ListWebhookDeliveriesRequest(**fields))
    return list(answer.deliveries)


async def retried(caller: Caller, name: str = "hook", **fields: Any) -> int:
    request = pb.RetryWebhookDeliveriesRequest(webhook=name, **fields)
    return int((await caller.call("RetryWebhookDeliveries", request)).retried)


async def ran(caller: Caller, **fields: Any) -> str:
    """A run that has ended; its id."""
    events = await all_events(caller.converse(await caller.thread(), **fields))
    return str(events[-1].run_id)


async def refused(call: Awaitable[Any]) -> JanusError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return from_rpc(raised.value)


def signatures(received: Received, *secrets: bytes) -> str:
    signed = f"{received.headers['webhook-id']}.{received.headers['webhook-timestamp']}.".encode() + received.body
    return " ".join(
        "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode() for secret in secrets
    )


async def all_told(caller: Caller) -> None:
    async def are_none() -> bool:
        return not await deliveries(caller)

    await eventually(are_none, 40)


async def one_with(caller: Caller, error: str) -> webhook_pb2.WebhookDelivery:
    """The only delivery, once it has failed so."""
    found: list[webhook_pb2.WebhookDelivery] = []

    async def is_there() -> bool:
        found[:] = await deliveries(caller)
        return [each.last_error for each in found] == [error]

    await eventually(is_there)
    return found[0]


# -- what is told --------------------------------------------------------------------


async def test_the_end_of_a_run_is_told_and_signed(ann: Caller, receiver: Receiver) -> None:
    await put(ann, receiver.url)
    run_id = await ran(ann, labels={"ticket": "7"})
    run = await ann.run(run_id)
    told = await receiver.next()
    assert told.headers["content-type"] == "application/json"
    assert told.headers["user-agent"].startswith("janus/")
    assert told.headers["webhook-signature"] == signatures(told, SECRET)
    assert abs(int(told.headers["webhook-timestamp"]) - time.time()) < 60
    assert told.id == f"{run_id}:{run.last_event.sequence}"
    about = told.json["data"]
    event = about.pop("event")
    assert told.json["type"] == "run.completed"
    assert about == {
        "run_id": run_id,
        "thread_id": run.thread_id,
        "agent": "helper",
        "agent_version": 1,
        "labels": {"ticket": "7"},
    }
    assert (event["run_id"], event["run_completed"]["finish_reason"]) == (run_id, "FINISH_REASON_STOP")
    assert told.json["timestamp"] == event["at"]
    await all_told(ann)
    assert len(receiver.seen) == 1


async def test_all_ends_are_told_unless_some_are_chosen(ann: Caller, receiver: Receiver, peer: InferencePeer) -> None:
    peer.always = None
    await put(ann, receiver.url)
    async with webhook_receiver() as picky:
        await put(ann, picky.url, "picky", events=[webhook_pb2.WEBHOOK_EVENT_RUN_CANCELLED])
        thread = await ann.thread()
        first = await ann.start(thread)
        call = await peer.call()
        # One that waits for its turn ends without an owner.
        waiting = await ann.start(thread)
        await ann.cancel(waiting.id)
        call.fail(Unavailable("", "the provider broke off", reason="PROVIDER_STREAM_BROKEN"))
        ended = await ann.watched(first.id)
        assert ended[-1].WhichOneof("event") == "run_failed"
        told = {each.json["data"]["run_id"]: each.json for each in [await receiver.next(), await receiver.next()]}
        assert {run_id: each["type"] for run_id, each in told.items()} == {
            waiting.id: "run.cancelled",
            first.id: "run.failed",
        }
        details = told[first.id]["data"]["event"]["run_failed"]["status"]["details"]
        assert details[0]["reason"] == "PROVIDER_STREAM_BROKEN"
        assert (await picky.next()).json["data"]["run_id"] == waiting.id
        await all_told(ann)
        assert len(picky.seen) == 1


async def test_only_runs_of_the_agents_that_are_named(ann: Caller, receiver: Receiver) -> None:
    await ann.agent("other")
    await put(ann, receiver.url, agents=["other"])
    await ran(ann)
    chosen = await ran(ann, agent="other")
    assert (await receiver.next()).json["data"]["run_id"] == chosen
    await all_told(ann)
    assert len(receiver.seen) == 1


@pytest.mark.parametrize("kind", ["approval_requested", "input_requested", "run_expired"])
async def test_events_of_waiting_runs_are_told_as_well(
    ann: Caller, receiver: Receiver, own_url: str, peer: InferencePeer, kind: str
) -> None:
    peer.always = None
    await put(ann, receiver.url, events=[webhook_pb2.WebhookEvent.Value(f"WEBHOOK_EVENT_{kind.upper()}")])
    run = await ann.start(await ann.thread())
    await peer.call()
    event = event_pb2.RunEvent(run_id=run.id, cursor=run_pb2.Cursor(epoch=1, sequence=900))
    getattr(event, kind).SetInParent()
    recorded = Recorded(Cursor(1, 900), kind, event.SerializeToString(), durable=True)
    async with (
        database(patient_postgres(own_url), application="test") as db,  # type: ignore[arg-type]
        PostgresStore(db).tenant(ann.tenant) as records,
    ):
        await records.add_events(run, [recorded])
    told = await receiver.next()
    assert (told.json["type"], told.id) == (kind.replace("_", "."), f"{run.id}:900")
    assert kind in told.json["data"]["event"]


async def test_an_event_that_is_too_large_is_told_without_its_contents(
    ann: Caller, receiver: Receiver, own_url: str, peer: InferencePeer
) -> None:
    peer.always = None
    await put(ann, receiver.url, events=[webhook_pb2.WEBHOOK_EVENT_INPUT_REQUESTED])
    run = await ann.start(await ann.thread())
    await peer.call()
    event = event_pb2.RunEvent(run_id=run.id, cursor=run_pb2.Cursor(epoch=1, sequence=900))
    event.input_requested.input.question = "x" * 300_000
    recorded = Recorded(Cursor(1, 900), "input_requested", event.SerializeToString(), durable=True)
    async with (
        database(patient_postgres(own_url), application="test") as db,  # type: ignore[arg-type]
        PostgresStore(db).tenant(ann.tenant) as records,
    ):
        await records.add_events(run, [recorded])
    told = await receiver.next()
    assert (told.json["data"]["run_id"], told.json["data"]["event"]) == (run.id, None)


async def test_nobody_else_is_told(service: Orchestration, ann: Caller, receiver: Receiver) -> None:
    await put(ann, receiver.url)
    ben = service.caller()
    await ben.agent()
    await ran(ben)
    mine = await ran(ann)
    assert (await receiver.next()).json["data"]["run_id"] == mine
    await all_told(ann)
    assert len(receiver.seen) == 1
    request = pb.DeleteWebhookRequest(name="hook")
    assert isinstance(await refused(ben.call("DeleteWebhook", request)), NotFound)
    assert isinstance(await refused(deliveries(ben, webhook="hook")), NotFound)
    assert isinstance(await refused(retried(ben)), NotFound)
    assert list((await ben.call("ListWebhooks", pb.ListWebhooksRequest())).webhooks) == []


def snippet(language: str) -> str:
    """The code of the guide that checks a signature."""
    guide = Path(__file__).parents[2] / "docs" / "guides" / "webhooks.md"
    blocks = re.findall(rf"```{language}\n(.*?)```", guide.read_text(), re.DOTALL)
    (found,) = [block for block in blocks if "webhook-signature" in block]
    return str(found)


async def test_the_guide_checks_a_request_in_python(ann: Caller, receiver: Receiver) -> None:
    await put(ann, receiver.url)
    await ran(ann)
    told = await receiver.next()
    names: dict[str, Any] = {}
    exec(snippet("python"), names)
    check = names["is_from_janus"]
    assert check(told.headers, told.body, written(SECRET))
    assert not check(told.headers, told.body + b" ", written(SECRET))
    assert not check(told.headers, told.body, written(OTHER))
    assert not check({**told.headers, "webhook-timestamp": "1700000000"}, told.body, written(SECRET))


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed here")
async def test_the_guide_checks_a_request_in_node(ann: Caller, receiver: Receiver, tmp_path: Path) -> None:
    await put(ann, receiver.url)
    await put(ann, receiver.url, secret=written(OTHER))
    await ran(ann)
    told = await receiver.next()
    headers = json.dumps(dict(told.headers))
    body = told.body.decode()
    (tmp_path / "check.mjs").write_text(
        snippet("javascript")
        + f"const [headers, body] = [{headers}, Buffer.from({json.dumps(body)})];"
        + f"const [old, present, none] = {json.dumps([written(SECRET), written(OTHER), written(bytes(32))])};"
        + "console.log(JSON.stringify([isFromJanus(headers, body, old), isFromJanus(headers, body, present),"
        + "isFromJanus(headers, body, none), isFromJanus(headers, Buffer.concat([body, body]), present),"
        + "isFromJanus({...headers, 'webhook-timestamp': '1700000000'}, body, present)]));"
    )
    node = await asyncio.create_subprocess_exec("node", tmp_path / "check.mjs", stdout=asyncio.subprocess.PIPE)
    said, _ = await node.communicate()
    assert json.loads(said) == [True, True, False, False, False]


# -- secrets -------------------------------------------------------------------------


async def test_a_secret_goes_in_and_never_comes_out(
    ann: Caller, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    for level in ("info", "warning", "error"):
        monkeypatch.setattr(webhook_sender._log, level, lambda *words, **details: said.append(f"{words} {details}"))
    receiver.answers = [web.Response(status=500), web.Response(status=410)]
    stored = await put(ann, receiver.url)
    assert (stored.secret, stored.version) == ("", 1)
    kept = await put(ann, receiver.url, secret="", expected_version=1)
    assert (kept.secret, kept.version) == ("", 2)
    assert [each.secret for each in (await ann.call("ListWebhooks", pb.ListWebhooksRequest())).webhooks] == [""]
    error = await refused(put(ann, receiver.url, secret=written(SECRET) + "!"))
    assert written(SECRET) not in str(error)
    await ran(ann)
    assert (await receiver.next()).headers["webhook-signature"] == signatures(receiver.seen[0], SECRET)
    await receiver.next()
    assert written(SECRET) not in str(await one_with(ann, "status 410"))
    assert len(said) >= 1
    assert not [line for line in said if written(SECRET)[6:] in line or str(SECRET) in line or receiver.url in line]


async def test_a_secret_that_was_replaced_signs_for_a_day(ann: Caller, receiver: Receiver, own_url: str) -> None:
    await put(ann, receiver.url)
    await put(ann, receiver.url, secret=written(OTHER))
    # The same secret again is no change.
    await put(ann, receiver.url, secret=written(OTHER))
    await ran(ann)
    told = await receiver.next()
    assert told.headers["webhook-signature"] == signatures(told, OTHER, SECRET)
    connection = await asyncpg.connect(own_url)
    until = await connection.fetchval("SELECT previous_until FROM orchestration.webhook")
    assert timedelta(hours=23) < until - datetime.now(UTC) <= timedelta(hours=24)
    await connection.execute("UPDATE orchestration.webhook SET previous_until = now()")
    await connection.close()
    await ran(ann)
    told = await receiver.next()
    assert told.headers["webhook-signature"] == signatures(told, OTHER)


# -- trying again and giving up ------------------------------------------------------


async def test_a_delivery_is_tried_until_it_succeeds(ann: Caller, receiver: Receiver) -> None:
    receiver.answers = [web.Response(status=500), web.Response(status=404), web.Response(status=202)]
    await put(ann, receiver.url)
    await ran(ann)
    tries = [await receiver.next() for _ in range(3)]
    assert len({each.id for each in tries}) == 1
    assert len({each.body for each in tries}) == 1
    for each in tries:
        assert each.headers["webhook-signature"] == signatures(each, SECRET)
    await all_told(ann)


async def test_what_is_never_taken_is_a_dead_letter_that_can_be_tried_again(ann: Caller, receiver: Receiver) -> None:
    receiver.answers = [web.Response(status=503) for _ in range(3)]
    await put(ann, receiver.url)
    run_id = await ran(ann)

    async def is_dead() -> bool:
        return bool(await deliveries(ann, dead_only=True))

    await eventually(is_dead)
    (dead,) = await deliveries(ann, webhook="hook")
    assert (dead.run_id, dead.attempts, dead.dead, dead.last_error) == (run_id, 3, True, "status 503")
    assert dead.event == webhook_pb2.WEBHOOK_EVENT_RUN_COMPLETED
    assert not dead.HasField("next_attempt_at")
    assert dead.id == receiver.seen[0].id
    await asyncio.sleep(0.4)
    assert len(receiver.seen) == 3
    assert isinstance(await refused(retried(ann, delivery_id="run_x:1")), NotFound)
    assert isinstance(await refused(retried(ann, "nobody")), NotFound)
    assert await retried(ann, delivery_id=dead.id, request_id="r1") == 1
    await all_told(ann)
    assert await retried(ann, delivery_id=dead.id, request_id="r1") == 1
    assert await retried(ann) == 0
    assert len(receiver.seen) == 4


async def test_all_dead_letters_of_a_webhook_are_tried_again_together(ann: Caller, receiver: Receiver) -> None:
    receiver.answers = [web.Response(status=410) for _ in range(4)]
    await put(ann, receiver.url)
    for _ in range(4):
        await ran(ann)

    async def are_dead() -> bool:
        return len(await deliveries(ann, dead_only=True)) == 4

    await eventually(are_dead)
    # Gone is gone: one try each.
    assert len(receiver.seen) == 4
    first = await ann.call("ListWebhookDeliveries", pb.ListWebhookDeliveriesRequest(page_size=3))
    rest = await ann.call(
        "ListWebhookDeliveries", pb.ListWebhookDeliveriesRequest(page_size=3, page_token=first.next_page_token)
    )
    ids = [each.id for each in (*first.deliveries, *rest.deliveries)]
    assert sorted(ids) == sorted(each.id for each in receiver.seen)
    assert rest.next_page_token == ""
    assert await retried(ann) == 4
    await all_told(ann)


async def test_a_receiver_that_asks_for_a_pause_gets_it(ann: Caller, receiver: Receiver) -> None:
    receiver.answers = [web.Response(status=429, headers={"Retry-After": "3600"})]
    await put(ann, receiver.url)
    await ran(ann)
    held = await one_with(ann, "status 429")
    assert held.next_attempt_at.ToDatetime(UTC) > datetime.now(UTC) + timedelta(minutes=59)
    # It goes for all that it is to be told.
    await ran(ann)
    await asyncio.sleep(0.5)
    assert [(each.attempts, each.dead) for each in await deliveries(ann)] == [(1, False), (0, False)]
    assert len(receiver.seen) == 1
    # Unless somebody knows better.
    await retried(ann, delivery_id=held.id)
    await all_told(ann)


async def test_a_receiver_that_does_not_answer_times_out(
    own_url: str, redis_url: str, peer: InferencePeer, receiver: Receiver
) -> None:
    receiver.open.clear()
    settings = {**SETTINGS, "webhook_timeout_s": 0.2, "webhook_longest_retry_s": 600, "webhook_first_retry_s": 600}
    async with running(own_url, redis_url, inference_target=peer.target, **settings) as serving:
        ann = serving.caller()
        await ann.agent()
        await put(ann, receiver.url)
        await ran(ann)
        await one_with(ann, "timeout")


async def test_a_receiver_that_is_away_is_tried_again(ann: Caller, receiver: Receiver) -> None:
    await put(ann, "http://127.0.0.1:9/")
    await ran(ann)
    await one_with(ann, "no connection")
    await put(ann, receiver.url)
    await retried(ann)
    await all_told(ann)
    assert len(receiver.seen) == 1


async def test_a_slow_receiver_gets_few_requests_at_a_time_and_holds_nobody_up(ann: Caller, receiver: Receiver) -> None:
    receiver.open.clear()
    await put(ann, receiver.url)
    async with webhook_receiver() as quick:
        await put(ann, quick.url, "quick")
        ids = {await ran(ann) for _ in range(8)}
        assert {(await quick.next()).json["data"]["run_id"] for _ in range(8)} == ids
        assert (receiver.waiting, len(receiver.seen)) == (2, 2)
        receiver.open.set()
        await all_told(ann)
        assert receiver.most_waiting == 2
        assert {each.json["data"]["run_id"] for each in receiver.seen} == ids


async def test_a_long_answer_is_not_read(ann: Caller) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65_536)

    application = web.Application()
    application.router.add_post("/", endless)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        await put(ann, f"http://127.0.0.1:{runner.addresses[0][1]}/")
        await ran(ann)
        await all_told(ann)
    finally:
        await runner.cleanup()


# -- where a webhook may not reach ---------------------------------------------------


async def test_a_redirect_is_not_followed(ann: Caller, receiver: Receiver) -> None:
    async with webhook_receiver() as target:
        receiver.answers = [web.Response(status=307, headers={"Location": target.url}) for _ in range(3)]
        await put(ann, receiver.url)
        await ran(ann)

        async def is_dead() -> bool:
            return bool(await deliveries(ann, dead_only=True))

        await eventually(is_dead)
        assert (await deliveries(ann))[0].last_error == "status 307"
        assert target.seen == []


@pytest.mark.parametrize("host", ["localhost", "0x7f.1"])
async def test_a_name_for_an_address_that_is_not_public_is_not_connected_to(
    own_url: str, redis_url: str, peer: InferencePeer, tmp_path: Path, host: str
) -> None:
    settings = {**SETTINGS, "webhook_networks": [], "webhook_first_retry_s": 600, "webhook_longest_retry_s": 600}
    async with (
        webhook_receiver(certified(tmp_path)) as inside,
        running(own_url, redis_url, inference_target=peer.target, **settings) as serving,
    ):
        ann = serving.caller()
        await ann.agent()
        await put(ann, inside.url.replace("127.0.0.1", host))
        await ran(ann)
        await one_with(ann, "the host's address may not be reached")
        error = await refused(put(ann, inside.url))
        assert isinstance(error, InvalidArgument)
        assert error.violations[0].field == "webhook.url"
        assert inside.seen == []


async def test_a_certificate_that_nobody_vouches_for_is_not_trusted(ann: Caller, tmp_path: Path) -> None:
    async with webhook_receiver(certified(tmp_path)) as receiver:
        await put(ann, receiver.url)
        await ran(ann)
        await one_with(ann, "no secure connection: TLS failed")
        assert receiver.seen == []


def certified(folder: Path) -> ssl.SSLContext:
    """A server's side of TLS with a certificate of its own making."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "receiver.pem"
    pem.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


# -- what is stored ------------------------------------------------------------------


async def test_webhooks_are_versioned_listed_and_counted(ann: Caller, receiver: Receiver) -> None:
    ends = [
        webhook_pb2.WEBHOOK_EVENT_RUN_COMPLETED,
        webhook_pb2.WEBHOOK_EVENT_RUN_FAILED,
        webhook_pb2.WEBHOOK_EVENT_RUN_CANCELLED,
        webhook_pb2.WEBHOOK_EVENT_RUN_EXPIRED,
    ]
    await ann.agent("x")
    await ann.agent("y")
    stored = await put(ann, receiver.url, "b", agents=["x", "y", "x"])
    assert stored == webhook_pb2.Webhook(name="b", url=receiver.url, events=ends, agents=["x", "y"], version=1)
    error = await refused(put(ann, receiver.url, "b", expected_version=7))
    assert isinstance(error, Aborted)
    assert error.metadata["current_version"] == "1"
    await put(ann, receiver.url, "a")
    await put(ann, receiver.url, "c")
    error = await refused(put(ann, receiver.url, "d"))
    assert isinstance(error, ResourceExhausted)
    assert error.reason == "QUOTA_EXCEEDED"
    await put(ann, receiver.url, "c")
    first = await ann.call("ListWebhooks", pb.ListWebhooksRequest(page_size=2))
    rest = await ann.call("ListWebhooks", pb.ListWebhooksRequest(page_size=2, page_token=first.next_page_token))
    assert [each.name for each in (*first.webhooks, *rest.webhooks)] == ["a", "b", "c"]


async def test_a_webhook_goes_with_all_that_it_has_yet_to_tell(ann: Caller, receiver: Receiver) -> None:
    receiver.answers = [web.Response(status=429, headers={"Retry-After": "3600"})]
    await put(ann, receiver.url)
    await ran(ann)
    await one_with(ann, "status 429")
    request = pb.DeleteWebhookRequest(name="hook", request_id="r1")
    await ann.call("DeleteWebhook", request)
    await ann.call("DeleteWebhook", request)
    assert await deliveries(ann) == []
    assert isinstance(await refused(ann.call("DeleteWebhook", pb.DeleteWebhookRequest(name="hook"))), NotFound)
    await ran(ann)
    await put(ann, receiver.url)
    last = await ran(ann)
    await receiver.next()
    assert (await receiver.next()).json["data"]["run_id"] == last


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"name": "a b"}, "webhook.name"),
        ({"url": ""}, "webhook.url"),
        ({"url": "https://" + "x" * 2_048}, "webhook.url"),
        ({"url": "https://10.0.0.1/"}, "webhook.url"),
        ({"url": "https://ann:pass@example.com/"}, "webhook.url"),
        ({"events": [0]}, "webhook.events[0]"),
        ({"events": [1, 99]}, "webhook.events[1]"),
        ({"events": [1, 1]}, "webhook.events"),
        ({"agents": ["a b"]}, "webhook.agents[0]"),
        ({"agents": [f"a{number}" for number in range(33)]}, "webhook.agents"),
        ({"secret": "short"}, "webhook.secret"),
        ({"secret": ""}, "webhook.secret"),
    ],
)
async def test_what_a_webhook_may_not_be(ann: Caller, fields: dict[str, Any], path: str) -> None:
    error = await refused(put(ann, **{"url": "https://example.com/", **fields}))
    assert isinstance(error, InvalidArgument)
    assert path in [violation.field for violation in error.violations]
    assert list((await ann.call("ListWebhooks", pb.ListWebhooksRequest())).webhooks) == []


async def test_a_webhook_names_agents_that_are_there_and_keeps_those_that_were(ann: Caller, receiver: Receiver) -> None:
    await ann.agent("x")
    error = await refused(put(ann, receiver.url, agents=["x", "x", "nope", "default", "never"]))
    assert isinstance(error, InvalidArgument)
    assert [(each.field, each.rule) for each in error.violations] == [
        ("webhook.agents[2]", "must be an agent that exists"),
        ("webhook.agents[4]", "must be an agent that exists"),
    ]
    assert list((await ann.call("ListWebhooks", pb.ListWebhooksRequest())).webhooks) == []
    await put(ann, receiver.url, agents=["x", "default"])
    await ann.call("DeleteAgent", pb.DeleteAgentRequest(name="x"))
    assert list((await put(ann, receiver.url, agents=["x"])).agents) == ["x"]
    await put(ann, receiver.url)
    error = await refused(put(ann, receiver.url, agents=["x"]))
    assert isinstance(error, InvalidArgument)


@pytest.mark.parametrize("identifier", ["nonsense", "run_1:", "run_1:-1", ":1"])
async def test_what_is_no_id_of_a_delivery(ann: Caller, identifier: str) -> None:
    error = await refused(retried(ann, delivery_id=identifier))
    assert isinstance(error, InvalidArgument)
    assert error.violations[0].field == "delivery_id"


# -- replicas ------------------------------------------------------------------------


async def test_what_a_killed_replica_was_telling_another_one_tells(
    own_url: str, redis_url: str, peer: InferencePeer, receiver: Receiver
) -> None:
    receiver.open.clear()
    settings = {**SETTINGS, "webhook_networks": '["127.0.0.0/8"]', "webhook_timeout_s": 60}
    async with processes(2, own_url, redis_url, inference_target=peer.target, **settings) as replicas:
        one, two = (replica.caller("ann") for replica in replicas)
        await one.agent()
        await put(one, receiver.url)
        ids = {await ran(each) for each in (one, two) * 4}

        async def are_waiting() -> bool:
            return receiver.waiting == 4

        # Two a replica.
        await eventually(are_waiting)
        replicas[0].kill()
        connection = await asyncpg.connect(own_url)
        # Whether its leases end soon or late makes no difference.
        await connection.execute("UPDATE orchestration.webhook_delivery SET next_attempt = now() WHERE attempts > 0")
        await connection.close()
        receiver.open.set()
        await all_told(two)
        assert {each.json["data"]["run_id"] for each in receiver.seen} == ids
        for each in receiver.seen:
            assert each.headers["webhook-signature"] == signatures(each, SECRET)
