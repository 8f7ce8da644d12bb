"""What webhooks' receivers rely on: signatures, secrets and waits; and where a webhook may not reach."""

from __future__ import annotations

import base64
import ipaddress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from janus_orchestration.adapters.http_receivers import _seconds, http_receivers, may_reach
from janus_orchestration.webhook import Letter, Webhook, delivery_id, delivery_place, secret_from, signature, wait_s

SECRET = bytes(range(24))


def test_a_signature_is_the_one_of_the_standard() -> None:
    # The example of the standard's own libraries.
    secret = secret_from("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    assert secret is not None
    body = b'{"test": 2432232314}'
    assert (
        signature([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
        == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


def test_two_secrets_sign_both() -> None:
    both = signature([SECRET, SECRET[::-1]], "id", 1, b"body")
    assert both == f"{signature([SECRET], 'id', 1, b'body')} {signature([SECRET[::-1]], 'id', 1, b'body')}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "whsec_",
        base64.b64encode(SECRET).decode(),
        "whsec_" + base64.b64encode(SECRET[:23]).decode(),
        "whsec_" + base64.b64encode(bytes(65)).decode(),
        "whsec_not base64 at all, really not!",
        "whsec_" + base64.b64encode(SECRET).decode() + "é",
    ],
)
def test_what_is_no_secret(text: str) -> None:
    assert secret_from(text) is None


def test_a_secret_is_in_no_text() -> None:
    webhook = Webhook("w", "https://example.com", (), (), 1, SECRET)
    letter = Letter("https://example.com", (SECRET,), "run_completed", b"", "t", "a", 1, ())
    assert str(SECRET)[2:-1] not in f"{webhook!r} {letter!r}"


def test_ids_of_deliveries_come_back() -> None:
    assert delivery_place(delivery_id("run_1:x", 12)) == ("run_1:x", 12)
    for text in ("", "run_1", ":1", "run_1:", "run_1:-1", "run_1:٣", "run_1:" + "9" * 19):
        assert delivery_place(text) is None


def test_waits_grow_are_spread_and_end() -> None:
    def waits(attempt: int, retry_after: float = 0) -> list[float]:
        return [wait_s(attempt, retry_after, first_s=5, longest_s=100) for _ in range(200)]

    for attempt, middle in ((1, 5), (2, 20), (3, 80), (4, 100), (90, 100)):
        found = waits(attempt)
        assert middle * 0.8 <= min(found) < max(found) <= middle * 1.2
    assert min(waits(1, 3_600)) == 3_600
    assert max(waits(1, 10**9)) == 86_400


def test_retry_after_is_seconds_or_a_date() -> None:
    assert _seconds("120") == 120
    in_an_hour = format_datetime(datetime.now(UTC) + timedelta(hours=1))
    assert 3_590 < _seconds(in_an_hour) <= 3_600
    assert _seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    for nonsense in ("", "soon", "-5", "1.5", "٣", "Wed, 99 Foo"):
        assert _seconds(nonsense) == 0


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
    ],
)
def test_addresses_that_are_not_public_are_out_of_reach(address: str) -> None:
    assert not may_reach(ipaddress.ip_address(address), (), public=True)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34"])
def test_public_addresses_are_within_reach_by_https_alone(address: str) -> None:
    assert may_reach(ipaddress.ip_address(address), (), public=True)
    assert not may_reach(ipaddress.ip_address(address), (), public=False)


def test_networks_that_are_allowed_are_within_reach() -> None:
    networks = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))
    for address in ("10.9.8.7", "::ffff:10.9.8.7", "fd12::1"):
        assert may_reach(ipaddress.ip_address(address), networks, public=False)
    assert not may_reach(ipaddress.ip_address("192.168.1.1"), networks, public=True)


BAD_URLS = [
    "",
    "example.com",
    "ftp://example.com",
    "http://example.com",
    "https://",
    "https:///path",
    "https://ann:pass@example.com",
    "https://ann@example.com",
    "https://example.com/#part",
    "https://127.0.0.1/",
    "https://[::1]/",
    "https://[::ffff:169.254.169.254]/latest",
    "https://169.254.169.254/latest/meta-data",
    "https://10.0.0.1",
    "https://2130706433",
    "https://127.1/",
    "https://example.com:99999/",
    "https://[nonsense/",
    "javascript:alert(1)",
]


@pytest.mark.parametrize("url", BAD_URLS)
async def test_urls_that_break_a_rule(url: str) -> None:
    async with http_receivers((), timeout_s=1) as receivers:
        assert receivers.broken_rule(url)
        assert not receivers.broken_rule("https://example.com:8443/hooks?key=1")


async def test_plain_http_is_for_networks_that_are_allowed() -> None:
    async with http_receivers((ipaddress.ip_network("127.0.0.0/8"),), timeout_s=1) as receivers:
        assert not receivers.broken_rule("http://127.0.0.1:8080/")
        assert not receivers.broken_rule("https://127.0.0.1:8080/")
        assert receivers.broken_rule("http://93.184.216.34/")
        # A name is looked at when it is known what it stands for.
        assert not receivers.broken_rule("http://receiver.internal/")
