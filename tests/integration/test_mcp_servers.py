"""MCP servers, real ones: what they offer, what becomes of a call, and what their misbehaviour leaves."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tests.fakes.mcp_shop import Offer, Shop, is_alive
from tests.fakes.orchestration_service import eventually

from janus_api.content.v1 import message_pb2 as content
from janus_kit.errors import Unavailable
from janus_kit.telemetry import logging
from janus_orchestration.adapters.mcp_connector import connector
from janus_orchestration.mcp_server import McpLimits, McpServer, Standing
from janus_orchestration.mcp_settings import McpServerSettings
from janus_orchestration.mcp_tools import McpTools, kept_connected
from janus_orchestration.model import MemoryPolicy, SideEffect, Thread, ToolCall, ToolOutput, WhenNoWorker
from janus_orchestration.ports import OutcomeUnknown, ToolTask

NOW = datetime(2026, 1, 1, tzinfo=UTC)
THREAD = Thread("t", "a", "", "", "", NOW, NOW)
PATIENCE_S = 60.0


class Report:
    """What was told of a call."""

    def __init__(self) -> None:
        self.attempts: list[int | None] = []
        self.told: list[tuple[float | None, str]] = []
        self.begun = asyncio.Event()

    async def started(self, worker_id: str = "", attempt: int | None = None) -> None:
        self.attempts.append(attempt)
        self.begun.set()

    async def progress(self, fraction: float | None, message: str) -> None:
        self.told.append((fraction, message))


class Client:
    """The source of tools, as runs use it."""

    def __init__(self, tools: McpTools, server: McpServer) -> None:
        self.tools = tools
        self.server = server

    async def offered(self, *names: str, tenant: str = "ann") -> dict[str, Any]:
        return {tool.name: tool for tool in await self.tools.find(tenant, names)}

    async def call(
        self,
        name: str,
        report: Report | None = None,
        *,
        tenant: str = "ann",
        timeout_s: float = PATIENCE_S,
        attempt: int = 1,
        when: WhenNoWorker = WhenNoWorker.FAIL,
        **arguments: Any,
    ) -> ToolOutput:
        (tool,) = await self.tools.find("ann", [f"shop.{name}"])
        task = ToolTask(
            tool=tool,
            call=ToolCall("c1", tool.name, json.dumps(arguments)),
            arguments=arguments,
            attempt=attempt,
            epoch=1,
            step=3,
            timeout_s=timeout_s,
            when_no_worker=when,
            message_id="msg",
            run_id="run",
            thread=THREAD,
            memory=MemoryPolicy(),
        )
        return await self.tools.call(tenant, task, report or Report())


@asynccontextmanager
async def connected(settings: McpServerSettings, *, lease_s: float = PATIENCE_S) -> AsyncIterator[Client]:
    limits = McpLimits(
        settings.max_concurrency, settings.connect_timeout_s, settings.refresh_s, settings.longest_retry_s, lease_s
    )
    server = McpServer("shop", connector("shop", settings), limits, Offer())
    async with kept_connected([server]):
        yield Client(McpTools([server], {"shop": settings.tenants}), server)


@pytest.fixture
def logs() -> Iterator[io.StringIO]:
    """All that is logged, libraries' debug lines as well."""
    written = io.StringIO()
    logging.configure(level="debug", stream=written)
    yield written
    logging.configure()


def said(output: ToolOutput) -> tuple[str, bool]:
    """The words, and whether it failed."""
    if not output.wire:
        return output.text, output.is_error
    result = content.ToolResult.FromString(output.wire)
    return "".join(part.text for part in result.parts), result.is_error


# -- each way of reaching a server, of both eras of the protocol ---------------------------


@pytest.fixture(params=["stdio", "http", "stdio of 2025", "http of 2025"])
async def any_shop(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Shop, Callable[..., Any]]]:
    made = Shop(tmp_path, LEGACY="1" if "2025" in request.param else "")
    if request.param.startswith("stdio"):
        yield made, made.stdio
    else:
        async with made.serving():
            yield made, made.http


async def test_a_call_of_each_outcome_over_each_transport(any_shop: tuple[Shop, Callable[..., Any]]) -> None:
    shop, settings = any_shop
    async with connected(settings()) as client:
        assert said(await client.call("price", item="tea")) == ('{\n  "item": "tea",\n  "cents": 250\n}', False)
        assert [line["key"] for line in shop.saw("price")] == ["run:3"]
        assert said(await client.call("refuse")) == ("Error executing tool refuse", True)
        assert said(await client.call("price", item="error")) == (
            "the tool's server answered with an error: the shelf fell down",
            True,
        )
        text, failed = said(await client.call("ask"))
        assert failed
        assert "answered with an error" in text

        report = Report()
        steps = asyncio.create_task(client.call("steps", report))
        await eventually(_holds(lambda: report.told == [(0.25, "begun")]))
        shop.tell("go on")
        assert said(await steps) == ("all steps", False)

        with pytest.raises(TimeoutError):
            await client.call("slow", timeout_s=0.3, seconds=300)
        await shop.until("slow cancelled")

        cancelled = asyncio.create_task(client.call("slow", seconds=300))
        await shop.until("slow began", 2)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        await shop.until("slow cancelled", 2)

        assert not await client.offered("shop.taught")
        await client.call("learn")
        await eventually(lambda: client.offered("shop.taught"), PATIENCE_S)
        assert said(await client.call("taught")) == ("taught", False)


def _holds(condition: Callable[[], bool]) -> Callable[[], Any]:
    async def asked() -> bool:
        return condition()

    return asked


async def test_a_server_that_dies_in_a_call_is_started_again_and_the_call_as_well(
    any_shop: tuple[Shop, Callable[..., Any]],
) -> None:
    shop, settings = any_shop
    async with connected(settings()) as client:
        report = Report()
        call = asyncio.create_task(client.call("die", report, when=WhenNoWorker.WAIT, lives=1))
        await shop.until("die")
        if shop.http().url == settings().url:
            await shop.kill()
            await shop.open()
        text, failed = said(await call)
        assert (text[:8], failed) == ("survived", False)
        assert report.attempts == [1, 2]


@pytest.fixture(params=["http", "http of 2025"])
async def far_shop(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Shop]:
    made = Shop(tmp_path, LEGACY="1" if "2025" in request.param else "")
    async with made.serving():
        yield made


async def test_a_call_that_was_begun_waits_for_its_server_to_be_back(far_shop: Shop) -> None:
    async with connected(far_shop.http()) as client:
        report = Report()
        call = asyncio.create_task(client.call("die", report, lives=1))
        await far_shop.until("die")
        await eventually(_holds(lambda: client.server._standing is Standing.AWAY), PATIENCE_S)
        # One that was not begun does not wait, and no try is told of that never got there.
        assert said(await client.call("brew", item="tea")) == ("the tool's server 'shop' is not connected", True)
        assert report.attempts == [1]
        await far_shop.open()
        text, failed = said(await call)
        assert (text[:8], failed) == ("survived", False)
        assert report.attempts == [1, 2]


async def test_of_a_call_that_was_begun_and_whose_server_stays_away_nothing_is_known(far_shop: Shop) -> None:
    async with connected(far_shop.http(), lease_s=0.5) as client:
        report = Report()
        assert said(await client.call("die", report, lives=1)) == (
            "the call was begun, but the tool's server 'shop' is not connected any more; "
            "whether it did anything is not known",
            True,
        )
        assert report.attempts == [1]
    assert len(far_shop.saw("die")) == 1


async def test_a_call_that_must_not_be_repeated_is_not_when_its_server_dies(
    any_shop: tuple[Shop, Callable[..., Any]],
) -> None:
    shop, settings = any_shop
    async with connected(settings()) as client:
        with pytest.raises(OutcomeUnknown, match="was lost before it answered"):
            await client.call("die_once")
        assert len(shop.saw("die_once")) == 1


# -- what is offered ----------------------------------------------------------------------


async def test_hints_are_taken_as_hints_and_the_operator_knows_better(shop: Shop) -> None:
    settings = shop.stdio(tools={"brew": {"side_effect": "idempotent", "timeout_s": 5}, "price": {"timeout_s": 7}})
    async with connected(settings) as client:
        names = ["shop.price", "shop.reserve", "shop.brew", "shop.refuse"]
        offered = await client.offered(*names)
        assert [(offered[name].side_effect, offered[name].timeout.total_seconds()) for name in names] == [
            (SideEffect.READ_ONLY, 7),
            (SideEffect.IDEMPOTENT, 60),
            (SideEffect.IDEMPOTENT, 5),
            (SideEffect.AT_MOST_ONCE, 60),
        ]
        assert offered["shop.price"].description == "What an item costs."
        assert json.loads(offered["shop.price"].schema_json)["required"] == ["item"]


async def test_a_tool_that_nobody_could_name_is_left_out_and_the_others_are_there(
    shop: Shop, logs: io.StringIO
) -> None:
    async with connected(shop.stdio()) as client:
        assert set(await client.offered("shop.a name/that is none", "shop.brew", "brew", "other.brew")) == {"shop.brew"}
    assert "mcp_tool_left_out" in logs.getvalue()


async def test_a_server_is_for_the_tenants_that_it_is_for(shop: Shop) -> None:
    async with connected(shop.stdio(tenants=("ann",))) as client:
        assert set(await client.offered("shop.brew")) == {"shop.brew"}
        assert not await client.offered("shop.brew", tenant="bob")
        assert said(await client.call("brew", tenant="bob", item="tea")) == ("there is no tool named 'shop.brew'", True)
    assert not shop.saw("brew")


async def test_tools_stay_known_while_their_server_is_away(shop: Shop) -> None:
    async with shop.serving(), connected(shop.http(longest_retry_s=0.3)) as client:
        assert await client.offered("shop.brew")
        await shop.kill()
        assert said(await client.call("brew", item="tea")) == ("the tool's server 'shop' is not connected", True)
        assert await client.offered("shop.brew")
        with pytest.raises(Unavailable, match="the MCP server 'shop' is not connected"):
            await client.server.check()

        waiting = asyncio.create_task(client.call("brew", when=WhenNoWorker.WAIT, item="tea"))
        await shop.open()
        assert said(await waiting) == ("a cup of tea", False)
        await client.server.check()
    assert len(shop.saw("brew")) == 1


# -- results ------------------------------------------------------------------------------


async def test_a_result_may_have_pictures_documents_and_links(shop: Shop) -> None:
    async with connected(shop.stdio()) as client:
        result = content.ToolResult.FromString((await client.call("show")).wire)
    png = b"\x89PNG"
    assert list(result.parts) == [
        content.Part(text="a\ufffdb"),
        content.Part(image=content.Media(data=png, mime_type="image/png")),
        content.Part(text="[audio of the type audio/wav, which cannot be shown]"),
        content.Part(
            document=content.Document(title="file:///a.pdf", media=content.Media(data=png, mime_type="application/pdf"))
        ),
        content.Part(text="in the file"),
        content.Part(text="c\nhttps://example.com/c\nmore"),
    ]


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ("lie", "its structured content does not hold to the tool's own schema: $.cents: must be integer"),
        ("omit", "it has no structured content, which the tool promises"),
        ("bad media", "its data is not valid base64"),
    ],
)
async def test_a_result_that_breaks_a_rule_is_a_failed_call(shop: Shop, item: str, problem: str) -> None:
    async with connected(shop.stdio()) as client:
        assert said(await client.call("price", item=item)) == (
            f"the tool ran, but its result breaks a rule: {problem}",
            True,
        )


async def test_what_a_server_says_is_bounded(any_shop: tuple[Shop, Callable[..., Any]]) -> None:
    shop, settings = any_shop
    async with connected(settings()) as client:
        text, failed = said(await client.call("large", mebibytes=1))
        assert (len(text), failed) == (1024 * 1024, False)
        # A text of more than 1 MiB breaks the contract's rule, a message of more than 5 MiB is not read at all.
        assert said(await client.call("large", mebibytes=2))[1]
        for mebibytes in (4, 8, 16):
            report = Report()
            text, failed = said(await client.call("large", report, mebibytes=mebibytes))
            assert failed
            assert re.fullmatch(
                "the tool's server answered with an error: .*(the response is too large|exceeded the .* byte limit.)",
                text,
            )
            assert report.attempts == [1]
            assert said(await client.call("reserve", item="tea")) == ("one tea is put aside", False)
        assert len(shop.saw("started")) == 1


async def test_garbage_on_stdout_is_passed_over(shop: Shop, logs: io.StringIO) -> None:
    async with connected(shop.stdio()) as client:
        assert said(await client.call("garble")) == ("garbled", False)
        assert said(await client.call("garble")) == ("garbled", False)
        assert len(shop.saw("started")) == 1
    told = logs.getvalue()
    assert told.count("mcp_server_wrote_no_message") == 1
    assert "operator" not in told


# -- calls --------------------------------------------------------------------------------


async def test_a_call_that_must_not_be_repeated_and_is_too_slow_has_an_unknown_outcome(shop: Shop) -> None:
    async with connected(shop.stdio()) as client:
        with pytest.raises(OutcomeUnknown, match=r"did not answer within 0.5 s"):
            await client.call("slow_once", timeout_s=0.5, seconds=300)
        await shop.until("slow cancelled")


async def test_a_call_that_takes_every_server_down_is_given_up(shop: Shop) -> None:
    async with connected(shop.stdio()) as client:
        report = Report()
        assert said(await client.call("die", report, when=WhenNoWorker.WAIT, lives=100)) == (
            "the tool's server was lost before it answered, 3 times; whether it did anything is not known",
            True,
        )
        assert report.attempts == [1, 2, 3]


async def test_at_most_so_many_calls_at_once(shop: Shop) -> None:
    async with connected(shop.stdio(max_concurrency=2)) as client:
        calls = [asyncio.create_task(client.call("slow", seconds=300)) for _ in range(2)]
        await shop.until("slow began", 2)
        # It never had its turn, so nothing is unknown.
        refused = await client.call("slow_once", timeout_s=0.5, seconds=300)
        assert said(refused) == ("the tool's server 'shop' did not take the call within 0.5 s", True)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert said(await client.call("brew", item="tea")) == ("a cup of tea", False)
    assert len(shop.saw("slow began")) == 2


# -- secrets ------------------------------------------------------------------------------


async def test_a_program_gets_what_it_is_given_and_nothing_of_ours(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, logs: io.StringIO
) -> None:
    monkeypatch.setenv("JANUS_POSTGRES_URL", "postgresql://secret")
    async with connected(shop.stdio(env={"TOKEN": "t-secret"})) as client:
        seen = json.loads(said(await client.call("whoami"))[0])
    assert seen["environment"] == {"TOKEN": "t-secret"}
    assert "secret" not in logs.getvalue()


async def test_headers_reach_the_server_and_no_log(shop: Shop, logs: io.StringIO) -> None:
    settings = shop.http(headers={"Authorization": "Bearer h-secret"}, longest_retry_s=0.3)
    assert "secret" not in repr(settings)
    async with shop.serving(), connected(settings) as client:
        seen = json.loads(said(await client.call("whoami"))[0])
        await shop.kill()
        await client.call("brew", item="tea")
    assert seen["headers"]["authorization"] == "Bearer h-secret"
    assert "secret" not in logs.getvalue()


# -- why a server is away -----------------------------------------------------------------


async def why_away(settings: McpServerSettings, logs: io.StringIO) -> str:
    """What is said of a server that cannot be reached, which the log and the part agree about."""
    async with connected(settings) as client:
        assert not await client.offered("shop.brew")
        with pytest.raises(Unavailable) as raised:
            await client.server.check()
    said, _, why = raised.value.message.partition(": ")
    assert said == "the MCP server 'shop' is not connected"
    lost = [json.loads(line) for line in logs.getvalue().splitlines() if "mcp_server_lost" in line]
    assert {line["why"] for line in lost} == {why}
    assert "secret" not in logs.getvalue() + why
    return why


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import sys; print('secret', file=sys.stderr); sys.exit(3)", "its program ended with exit code 3; "),
        ("import secret", "its program ended with exit code 1; "),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "its program was ended by SIGKILL; "),
    ],
)
async def test_how_a_program_ended_is_said(program: str, why: str, logs: io.StringIO) -> None:
    settings = McpServerSettings(command=(sys.executable, "-c", program), env={"KEY": "secret"}, longest_retry_s=0.3)
    assert await why_away(settings, logs) == why + "`stderr: true` shows what it writes to stderr"


async def test_why_a_program_cannot_be_started_is_said(tmp_path: Path, logs: io.StringIO) -> None:
    why = await why_away(McpServerSettings(command=(str(tmp_path / "secret"),)), logs)
    assert why == "its program cannot be started: No such file or directory"


async def test_that_nobody_listens_is_said(shop: Shop, logs: io.StringIO) -> None:
    assert await why_away(shop.http(headers={"Key": "secret"}), logs) == "the connection is refused"


async def test_the_status_of_an_answer_that_is_none_is_said(logs: io.StringIO) -> None:
    async def refuse(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer secret"
        return web.Response(status=401, text="secret")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", refuse)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/mcp"
        settings = McpServerSettings(url=url, headers={"Authorization": "Bearer secret"})
        assert await why_away(settings, logs) == "it answered with HTTP 401"
    finally:
        await runner.cleanup()


async def test_that_a_server_does_not_answer_is_said(logs: io.StringIO) -> None:
    settings = McpServerSettings(command=("sleep", "300"), connect_timeout_s=0.3)
    assert await why_away(settings, logs) == "it does not answer in time"


# -- ends ---------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True])
async def test_a_program_that_is_deaf_to_its_end_is_killed_with_its_children(tmp_path: Path, frozen: bool) -> None:
    shop = Shop(tmp_path, DEAF="very")
    async with connected(shop.stdio()) as client:
        await client.offered("shop.freeze")
        if frozen:
            call = asyncio.create_task(client.call("freeze"))
            (line,) = await shop.until("frozen")
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
    (started,) = shop.saw("started")
    pids = [started["pid"], *([line["child"]] if frozen else [])]
    await eventually(_holds(lambda: not any(map(is_alive, pids))))


async def test_a_program_that_is_deaf_to_its_stdin_is_asked_before_it_is_killed(tmp_path: Path) -> None:
    shop = Shop(tmp_path, DEAF="a little")
    async with connected(shop.stdio()) as client:
        await client.offered("shop.brew")
    assert shop.saw("ended")
    assert shop.saw("terminated")


async def test_whoever_is_cancelled_twice_leaves_no_program_behind(tmp_path: Path) -> None:
    shop = Shop(tmp_path, DEAF="very")

    async def use() -> None:
        async with connector("shop", shop.stdio())() as session:
            await session.call("freeze", {}, "run:1", lambda fraction, message: None)

    using = asyncio.create_task(use())
    (frozen,) = await shop.until("frozen")
    for _ in range(3):
        using.cancel()
        await asyncio.sleep(0.05)
    await asyncio.gather(using, return_exceptions=True)
    await eventually(_holds(lambda: not is_alive(frozen["pid"]) and not is_alive(frozen["child"])))


async def test_a_stopped_program_that_answers_nothing_is_replaced(shop: Shop) -> None:
    async with connected(shop.stdio(refresh_s=0.2, connect_timeout_s=20)) as client:
        await client.offered("shop.brew")
        (started,) = shop.saw("started")
        client.server._limits = client.server._limits._replace(connect_s=0.5)
        os.kill(started["pid"], signal.SIGSTOP)

        async def is_gone() -> bool:
            return not is_alive(started["pid"])

        await eventually(is_gone, PATIENCE_S)
        client.server._limits = client.server._limits._replace(connect_s=PATIENCE_S)
        assert said(await client.call("brew", when=WhenNoWorker.WAIT, item="tea")) == ("a cup of tea", False)


@pytest.mark.parametrize(
    "command", [("/nowhere/to/be/found",), ("false",), ("sleep", "300"), ("yes",), ("cat",)], ids=lambda each: each[0]
)
async def test_a_program_that_is_no_server_is_away_and_harms_nobody(command: tuple[str, ...]) -> None:
    settings = McpServerSettings(command=command, connect_timeout_s=0.5, longest_retry_s=0.3)
    async with connected(settings) as client:
        assert not await client.offered("shop.brew")
        with pytest.raises(Unavailable):
            await client.server.check()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("mcp-")]
