"""Webhooks' receivers over HTTP.

Their URLs are tenants' words, so what counts is the address that is connected
to, whatever a name, a redirect or a clever spelling says: every socket is made
by ``_sockets``, which makes none to an address that may not be reached. Nothing
is read from the environment, no cookie is kept, no redirect followed, and an
answer's body is not read.
"""

import ipaddress
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeAlias

import aiohttp
from yarl import URL

from janus_orchestration.ports import Answer, NotReached

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

# Addresses that stand for an IPv4 address in their last 32 bits.
_TRANSLATED = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))


class _Forbidden(OSError):
    """The address may not be reached."""


def may_reach(address: Address, networks: Sequence[Network], *, public: bool) -> bool:
    """Whether an address is in one of the networks or, with ``public``, one of the internet's."""
    real = _meant(address)
    if any(real in network for network in networks if network.version == real.version):
        return True
    return public and real.is_global and not real.is_multicast


def _meant(address: Address) -> Address:
    """The IPv4 address that an IPv6 address is another way to, where it is one."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if any(address in network for network in _TRANSLATED):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1] or address


def _sockets(networks: Sequence[Network], *, public: bool) -> Callable[[Any], socket.socket]:
    def make(info: Any) -> socket.socket:
        family, kind, protocol, _, address = info
        try:
            is_allowed = may_reach(ipaddress.ip_address(address[0]), networks, public=public)
        except ValueError:
            # Not an address but something that the system would make one of.
            is_allowed = False
        if not is_allowed:
            raise _Forbidden(f"{address[0]} may not be reached")
        return socket.socket(family, kind, protocol)

    return make


@asynccontextmanager
async def http_receivers(networks: Sequence[Network], *, timeout_s: float) -> AsyncIterator["HttpReceivers"]:
    """Receivers on the internet by https, and by either in these networks."""

    def session(*, public: bool) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, socket_factory=_sockets(networks, public=public)),
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )

    async with session(public=True) as secure, session(public=False) as plain:
        yield HttpReceivers(networks, secure, plain)


class HttpReceivers:
    """Implements ports.Receivers. Made by ``http_receivers``."""

    def __init__(
        self, networks: Sequence[Network], secure: aiohttp.ClientSession, plain: aiohttp.ClientSession
    ) -> None:
        self._networks = networks
        self._secure = secure
        self._plain = plain

    def broken_rule(self, url: str) -> str:
        try:
            parsed = URL(url)
            has_user = parsed.user is not None or parsed.password is not None
            port = parsed.port
        except ValueError:
            return "must be a URL"
        allowed = ("https", "http") if self._networks else ("https",)
        if parsed.scheme not in allowed or not parsed.host or not port:
            return "must be an https URL with a host"
        if has_user or parsed.raw_fragment:
            return "must have no user, password or fragment"
        try:
            address = ipaddress.ip_address(parsed.host)
        except ValueError:
            # What systems take for an address though it does not look like one.
            is_number = parsed.host.replace(".", "").isdigit()
            return "must have a name or a whole address as its host" if is_number else ""
        if not may_reach(address, self._networks, public=parsed.scheme == "https"):
            return "must not be an address that is not public"
        return ""

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        session = self._secure if url.lower().startswith("https:") else self._plain
        try:
            async with session.post(url, headers=headers, data=body, allow_redirects=False) as response:
                return Answer(response.status, _seconds(response.headers.get("retry-after", "")))
        except TimeoutError:
            raise NotReached("timeout") from None
        except aiohttp.ClientConnectorDNSError:
            raise NotReached("the host's name is not known") from None
        except aiohttp.ClientSSLError:
            raise NotReached("no secure connection: TLS failed") from None
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, _Forbidden):
                raise NotReached("the host's address may not be reached") from None
            raise NotReached("no connection") from None
        except (aiohttp.ClientError, OSError, ValueError):
            raise NotReached("no answer that is HTTP") from None


def _seconds(retry_after: str) -> float:
    """What `Retry-After` asks for, as seconds or as a date; 0 for nothing that makes sense."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
