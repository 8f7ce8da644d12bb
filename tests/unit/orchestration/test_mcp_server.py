"""A server's owner: when it begins anew, and when it had better not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.fakes.mcp_shop import Offer

from janus_kit.errors import Unavailable
from janus_orchestration import mcp_server
from janus_orchestration.mcp_ports import McpLost, McpNotTaken, McpSession, Progress
from janus_orchestration.mcp_server import McpLimits, McpServer
from janus_orchestration.mcp_tools import McpTools, kept_connected
from janus_orchestration.model import MemoryPolicy, SideEffect, Thread, Tool, ToolCall, ToolOutput, WhenNoWorker
from janus_orchestration.ports import ToolTask

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BREW = Tool("shop.brew", "", "", SideEffect.AT_MOST_ONCE, timedelta(seconds=60))
TASK = ToolTask(
    BREW, ToolCall("c1", BREW.name, "{}"), {}, 1, 1, 2, 60, WhenNoWorker.FAIL, "m", "run",
    Thread("t", "a", "", "", "", NOW, NOW), MemoryPolicy(),
)  # fmt: skip

READING = replace(TASK, tool=replace(BREW, side_effect=SideEffect.READ_ONLY))


class Report:
    def __init__(self) -> None:
        self.attempts: list[int | None] = []

    async def started(self, worker_id: str = "", attempt: int | None = None) -> None:
        self.attempts.append(attempt)

    async def progress(self, fraction: float | None, message: str) -> None: ...


class Session:
    """A connection whose server does what the test says."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.is_lost = asyncio.Event()

    async def tools(self) -> Sequence[Tool]:
        self.shop.lists += 1
        if self.shop.is_mute and self.shop.lists > 1:
            await asyncio.Event().wait()
        return [BREW]

    async def changed(self) -> None:
        await self.is_lost.wait()
        raise McpLost

    async def call(self, tool: str, arguments: Mapping[str, Any], idempotency_key: str, tell: Progress) -> ToolOutput:
        self.shop.calls.append((tool, idempotency_key))
        self.shop.called.append(self)
        outcome = await self.shop.outcomes.get()
        if isinstance(outcome, Exception):
            raise outcome
        return ToolOutput(outcome)


class Shop:
    """All connections to one server."""

    def __init__(self) -> None:
        self.tries = 0
        self.lists = 0
        self.is_mute = False
        self.is_away = False
        self.sessions: list[Session] = []
        self.calls: list[tuple[str, str]] = []
        self.called: list[Session] = []
        self.outcomes: asyncio.Queue[str | Exception] = asyncio.Queue()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[McpSession]:
        self.tries += 1
        if self.is_away:
            raise ConnectionError
        session = Session(self)
        self.sessions.append(session)
        yield session


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for is not of this loop
            await asyncio.sleep(0.005)


async def until_lost(server: McpServer) -> None:
    async with asyncio.timeout(20):
        with suppress(Unavailable):
            while True:
                await server.check()
                await asyncio.sleep(0)


def serving(shop: Shop, offer: Offer | None = None, **limits: float) -> McpServer:
    defaults = {"connect_s": 20, "refresh_s": 300, "longest_retry_s": 1, "lease_s": 15}
    return McpServer("shop", shop.connect, McpLimits(8, **defaults | limits), offer or Offer())


async def test_a_server_that_answers_nothing_is_left_only_once_no_call_is_under_way() -> None:
    shop = Shop()
    server = serving(shop, connect_s=0.05, refresh_s=0.01)
    async with kept_connected([server]):
        await server.tools()
        shop.is_mute = True
        call = asyncio.create_task(server.call("brew", TASK, Report()))
        await until(lambda: shop.lists > 4)
        assert len(shop.sessions) == 1
        shop.outcomes.put_nowait("a cup")
        assert (await call).text == "a cup"
        assert shop.calls == [("brew", "run:2")]


async def test_a_mute_server_without_calls_is_connected_anew() -> None:
    shop = Shop()
    server = serving(shop, connect_s=0.05, refresh_s=0.01)
    async with kept_connected([server]):
        await server.tools()
        shop.is_mute = True
        await until(lambda: shop.lists > 2)
        shop.is_mute = False
        await until(lambda: len(shop.sessions) == 2)


async def test_a_call_that_never_got_there_is_made_again_and_counts_once() -> None:
    shop = Shop()
    server = serving(shop)
    report = Report()
    async with kept_connected([server]):
        await server.tools()
        for outcome in (McpNotTaken(), McpNotTaken(), McpNotTaken(), McpNotTaken(), "a cup"):
            shop.outcomes.put_nowait(outcome)
        assert (await server.call("brew", TASK, report)).text == "a cup"
    assert report.attempts == [1]
    assert len(shop.calls) == 5


async def test_a_call_is_not_made_over_a_lost_connection_whose_end_a_process_that_stood_still_has_not_seen() -> None:
    shop = Shop()
    server = serving(shop)
    async with kept_connected([server]):
        await server.tools()
        call = asyncio.create_task(server.call("brew", READING, Report()))
        shop.outcomes.put_nowait(McpLost())
        await until(lambda: shop.called)
        for _ in range(5):
            await asyncio.sleep(0)
        time.sleep(0.4)  # noqa: ASYNC251 - the stall itself
        for _ in range(5):
            await asyncio.sleep(0)
        shop.sessions[0].is_lost.set()
        shop.outcomes.put_nowait("a cup")
        assert (await call).text == "a cup"
    assert shop.called == shop.sessions
    assert len(shop.sessions) == 2


NOT_BACK = (
    "the call was begun, but the tool's server 'shop' is not connected any more; whether it did anything is not known"
)


async def test_a_further_try_is_told_of_once_it_got_there() -> None:
    shop = Shop()
    server = serving(shop)
    report = Report()
    async with kept_connected([server]):
        await server.tools()
        call = asyncio.create_task(server.call("brew", READING, report))
        for outcome in (McpLost(), McpNotTaken()):
            shop.outcomes.put_nowait(outcome)
        await until(lambda: len(shop.calls) == 3)
        assert report.attempts == [1]
        # The tool works, and says nothing yet.
        await until(lambda: report.attempts == [1, 2])
        shop.outcomes.put_nowait("a cup")
        assert (await call).text == "a cup"
    assert report.attempts == [1, 2]


@pytest.mark.parametrize("when", WhenNoWorker)
async def test_a_call_that_was_begun_waits_no_longer_than_its_own_time(when: WhenNoWorker) -> None:
    shop = Shop()
    server = serving(shop)
    async with kept_connected([server]):
        await server.tools()
        shop.is_away = True
        call = asyncio.create_task(server.call("brew", replace(READING, timeout_s=1.5, when_no_worker=when), Report()))
        await until(lambda: shop.called)
        shop.outcomes.put_nowait(McpLost())
        shop.sessions[0].is_lost.set()
        async with asyncio.timeout(10):
            output = await call
    assert (output.text, output.is_error) == (NOT_BACK, True)


async def test_a_call_that_an_earlier_owner_may_have_begun_waits_as_well() -> None:
    shop = Shop()
    shop.is_away = True
    server = serving(shop, lease_s=0.2)
    async with kept_connected([server]):
        output = await server.call("brew", replace(READING, attempt=2), Report())
        assert (output.text, output.is_error) == (NOT_BACK, True)
        output = await server.call("brew", READING, Report())
        assert (output.text, output.is_error) == ("the tool's server 'shop' is not connected", True)


async def test_a_server_that_a_begun_call_waits_for_is_tried_often(monkeypatch: pytest.MonkeyPatch) -> None:
    # It has been away for long.
    monkeypatch.setattr(mcp_server, "_FIRST_RETRY_S", 3_600)
    shop = Shop()
    shop.is_away = True
    server = serving(shop)
    async with kept_connected([server]):
        assert not await server.tools()
        call = asyncio.create_task(server.call("brew", replace(READING, attempt=2), Report()))
        await until(lambda: shop.tries >= 2)
        shop.is_away = False
        shop.outcomes.put_nowait("a cup")
        assert (await call).text == "a cup"


async def test_what_a_server_offered_before_a_restart_is_known_while_it_is_away() -> None:
    shop, offer = Shop(), Offer()
    async with kept_connected([server := serving(shop, offer, refresh_s=0.01)]):
        await until(lambda: offer.writes)
        assert await server.tools() == {BREW.name: BREW}
        await until(lambda: shop.lists > 3)
    # What has not changed is not written again.
    assert (offer.tools, offer.writes) == ([BREW], 1)

    shop.is_away = True
    told: list[str] = []
    server = serving(shop, offer, longest_retry_s=0.1)
    server.on_tools = told.extend
    async with kept_connected([server]):
        assert await server.tools() == {BREW.name: BREW}
        assert told == [BREW.name]
        output = await server.call("brew", TASK, Report())
        assert (output.text, output.is_error) == ("the tool's server 'shop' is not connected", True)
        call = asyncio.create_task(server.call("brew", replace(TASK, when_no_worker=WhenNoWorker.WAIT), Report()))
        shop.is_away = False
        shop.outcomes.put_nowait("a cup")
        assert (await call).text == "a cup"


async def test_records_that_are_away_keep_no_server_from_being_used() -> None:
    shop, offer = Shop(), Offer(BREW)
    offer.is_away = shop.is_away = True
    server = serving(shop, offer, longest_retry_s=0.1, refresh_s=0.01)
    async with kept_connected([server]):
        assert not await server.tools()
        offer.is_away = False
        async with asyncio.timeout(20):
            while not await server.tools():  # noqa: ASYNC110 - what is waited for is not of this loop
                await asyncio.sleep(0.005)
        offer.is_away, shop.is_away = True, False
        offer.tools = []
        shop.outcomes.put_nowait("a cup")
        assert (await server.call("brew", replace(TASK, when_no_worker=WhenNoWorker.WAIT), Report())).text == "a cup"
    assert not offer.writes


async def test_one_server_that_cannot_be_reached_keeps_no_other_waiting() -> None:
    near, far = Shop(), Shop()
    far.is_away = True
    servers = [serving(near), McpServer("far", far.connect, McpLimits(8, 20, 300, 1, 15), Offer())]
    tools = McpTools(servers, {})
    async with kept_connected(servers):
        async with asyncio.timeout(10):
            assert await tools.find("ann", ["far.brew", "shop.brew"]) == [BREW]
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("mcp-")]


NOT_CONNECTED = ToolOutput("the tool's server 'shop' is not connected", is_error=True)


async def test_a_server_that_is_lost_once_is_waited_for_and_one_that_is_lost_again_and_again_is_away() -> None:
    shop = Shop()
    server = serving(shop, longest_retry_s=3_600)
    async with kept_connected([server]):
        await server.tools()
        shop.sessions[0].is_lost.set()
        shop.outcomes.put_nowait("a cup")
        await until_lost(server)
        assert (await server.call("brew", TASK, Report())).text == "a cup"
        shop.sessions[1].is_lost.set()
        await until_lost(server)
        report = Report()
        assert await server.call("brew", TASK, report) == NOT_CONNECTED
        assert len(shop.sessions) == 2, "it answered at once, before the next try to connect"
        assert report.attempts == []


async def test_a_call_whose_time_is_up_before_it_was_begun_is_not_said_to_be_slow() -> None:
    shop = Shop()
    shop.is_away = True
    server = serving(shop)
    async with kept_connected([server]):
        waiting = replace(TASK, timeout_s=0.1, when_no_worker=WhenNoWorker.WAIT)
        assert await server.call("brew", waiting, Report()) == NOT_CONNECTED
    shop = Shop()
    server = McpServer("shop", shop.connect, McpLimits(1, 20, 300, 1, 15), Offer())
    async with kept_connected([server]):
        first = asyncio.create_task(server.call("brew", TASK, Report()))
        await until(lambda: shop.called)
        output = await server.call("brew", replace(TASK, timeout_s=0.1), Report())
        assert output == ToolOutput("the tool's server 'shop' did not take the call within 0.1 s", is_error=True)
        shop.outcomes.put_nowait("a cup")
        assert (await first).text == "a cup"
