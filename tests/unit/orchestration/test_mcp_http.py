"""HTTP to MCP servers: what is bounded, and what is known never to have got there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest
from aiohttp import web

from janus_orchestration.adapters import mcp_http
from janus_orchestration.adapters.mcp_ended import Ended

MOST_BYTES = 1_000


@asynccontextmanager
async def served() -> AsyncIterator[str]:
    """A server whose answers are as long as their paths say."""

    closing = asyncio.Event()

    async def post(request: web.Request) -> web.Response:
        match request.path.split("/")[1:]:
            case ["gone"]:
                return web.Response(status=404)
            case [kind, size]:
                content_type = "text/event-stream" if kind == "text" else "application/json"
                return web.Response(body=b" " * int(size), content_type=content_type)
        raise web.HTTPBadRequest

    async def delete(request: web.Request) -> web.Response:
        await closing.wait()
        return web.Response()

    app = web.Application()
    app.router.add_post("/{path:.*}", post)
    app.router.add_delete("/{path:.*}", delete)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        closing.set()
        await runner.cleanup()


@pytest.fixture
def ended() -> Ended:
    return Ended()


@pytest.fixture
async def http(ended: Ended) -> AsyncIterator[httpx2.AsyncClient]:
    async with mcp_http.client({"Authorization": "secret"}, connect_s=5, most_bytes=MOST_BYTES, ended=ended) as client:
        yield client


def was_not_taken(response: httpx2.Response) -> bool:
    return response.status_code == 503 and response.json()["error"]["code"] == mcp_http.NOT_TAKEN


async def test_a_body_is_read_as_far_as_the_bound_and_a_stream_for_as_long_as_it_goes(http: httpx2.AsyncClient) -> None:
    async with served() as url:
        assert len((await http.post(f"{url}/application/{MOST_BYTES}")).content) == MOST_BYTES
        with pytest.raises(httpx2.StreamError, match="too large"):
            await http.post(f"{url}/application/{MOST_BYTES + 1}")
        assert len((await http.post(f"{url}/text/{MOST_BYTES + 1}")).content) == MOST_BYTES + 1


async def test_a_server_that_is_not_there_has_taken_nothing(http: httpx2.AsyncClient, ended: Ended) -> None:
    async with served() as url:
        pass
    assert was_not_taken(await http.post(f"{url}/application/1"))
    assert ended.is_set()
    assert ended.why == "the connection is refused"


async def test_what_went_wrong_last_is_known(http: httpx2.AsyncClient, ended: Ended) -> None:
    async with served() as url:
        await http.post(f"{url}/refused")
        assert ended.why == "it answered with HTTP 400"
        await http.post(f"{url}/application/1")
        assert not ended.why
        # Not every server has something to say to a GET.
        assert (await http.get(f"{url}/application/1")).status_code == 405
        assert not ended.why
        await http.post(f"{url.replace('http:', 'https:')}/application/1")
        assert ended.why.startswith("TLS fails (")


async def test_a_server_that_does_not_know_the_session_has_taken_nothing(
    http: httpx2.AsyncClient, ended: Ended
) -> None:
    async with served() as url:
        # Without a session it is only an address where nothing is.
        assert (await http.post(f"{url}/gone")).status_code == 404
        assert not ended.is_set()
        assert ended.why == "it answered with HTTP 404"
        assert was_not_taken(await http.post(f"{url}/gone", headers={"Mcp-Session-Id": "s"}))
        assert ended.is_set()
        assert ended.why == "it does not know its session any more"


async def test_a_goodbye_that_nobody_answers_is_not_waited_for(
    http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp_http, "_CLOSE_S", 0.05)
    async with served() as url:
        with pytest.raises(TimeoutError):
            await http.delete(url)
