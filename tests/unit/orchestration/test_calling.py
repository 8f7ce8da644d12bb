"""Calls side by side: bounded, in nobody's way, and every one of them with an output."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from operator import attrgetter

import pytest

from janus_kit.errors import Unavailable
from janus_orchestration.calling import Assignment, Begun, CallContext, Done, under_way
from janus_orchestration.model import (
    Cursor,
    MemoryPolicy,
    SideEffect,
    Step,
    StepKind,
    Thread,
    Tool,
    ToolCall,
    ToolOutput,
)
from janus_orchestration.ports import ToolReport, ToolTask
from janus_orchestration.tools import BadArguments, Offered, Toolbox, arguments_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CONTEXT = CallContext("tenant", "run_1", 1, "msg_1", Thread("t", "a", "", "", "", NOW, NOW), MemoryPolicy())
FAILED = attrgetter("is_error")
SCHEMA = '{"type": "object", "properties": {"n": {"type": "integer"}}}'


def tool(name: str = "count", schema: str = SCHEMA) -> Tool:
    return Tool(name, "", schema, SideEffect.READ_ONLY, timedelta(seconds=60))


class Source:
    """A source whose one tool is the test's."""

    knows_calls = False

    def __init__(self, work: Callable[[ToolTask], Awaitable[str]], name: str = "count") -> None:
        self.work = work
        self.name = name
        self.tasks: list[ToolTask] = []
        self.ended = 0

    async def find(self, tenant: str, names: Collection[str]) -> Sequence[Tool]:
        return [tool(self.name)] if self.name in names else []

    async def call(self, tenant: str, task: ToolTask, report: ToolReport) -> ToolOutput:
        self.tasks.append(task)
        await report.started("w1")
        try:
            return ToolOutput(await self.work(task))
        finally:
            self.ended += 1


def assignments(source: Source, count: int, *, timeout_s: float = 30, at_once: int = 8) -> list[Assignment]:
    offered = Offered(tool(), source, timeout_s, at_once)
    return [
        Assignment(
            Step(index, StepKind.TOOL_CALL, 2, Cursor(), NOW),
            ToolCall(f"c{index}", "count", f'{{"n": {index}}}'),
            offered,
        )
        for index in range(1, count + 1)
    ]


async def outputs(work: list[Assignment]) -> dict[int, ToolOutput]:
    found: dict[int, ToolOutput] = {}
    async with asyncio.timeout(10), under_way(CONTEXT, work, FAILED) as calls:
        while len(found) < len(work):
            found |= {told.step.index: told.output for told in await calls.news() if isinstance(told, Done)}
    return found


async def test_a_call_is_begun_and_done_with_a_key_that_every_try_shares() -> None:
    async def work(task: ToolTask) -> str:
        return f"{task.arguments['n']} of {task.attempt}"

    source = Source(work)
    async with under_way(CONTEXT, assignments(source, 1), FAILED) as calls:
        told = await calls.news()
        while len(told) < 2:
            told += await calls.news()
    assert [type(each) for each in told] == [Begun, Done]
    assert told[1] == Done(told[0].step, ToolOutput("1 of 2"))
    assert (source.tasks[0].idempotency_key, source.tasks[0].message_id) == ("run_1:1", "msg_1")


async def test_at_most_so_many_at_once() -> None:
    running, most = 0, 0

    async def work(task: ToolTask) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return ""

    assert len(await outputs(assignments(Source(work), 20, at_once=3))) == 20
    assert most == 3


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Unavailable("memory"), "memory is not available"),
        (ValueError("a secret"), "the tool broke; incident "),
        (TimeoutError(), "the tool did not answer within 30 s"),
    ],
)
async def test_a_tool_that_breaks_is_a_failed_call_and_the_others_go_on(error: Exception, said: str) -> None:
    async def work(task: ToolTask) -> str:
        if task.arguments["n"] == 1:
            raise error
        return "fine"

    found = await outputs(assignments(Source(work), 2))
    assert found[1].is_error
    assert found[1].text.startswith(said)
    assert "secret" not in found[1].text
    assert found[2] == ToolOutput("fine")


async def test_who_leaves_ends_what_is_left() -> None:
    async def work(task: ToolTask) -> str:
        await asyncio.Event().wait()
        return ""

    source = Source(work)
    async with under_way(CONTEXT, assignments(source, 3), FAILED) as calls:
        await calls.news()
    assert source.ended == len(source.tasks)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("tool-")]


async def test_of_two_sources_the_first_has_the_name() -> None:
    async def work(task: ToolTask) -> str:
        return ""

    first, second, third = Source(work), Source(work), Source(work, "other")
    found = await Toolbox([first, second, third]).find("tenant", ["count", "other", "none"])
    assert {name: source for name, (_, source) in found.items()} == {"count": first, "other": third}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must be valid JSON"),
        ("{", "must be valid JSON"),
        ('{"n": NaN}', "must be valid JSON"),
        ('{"n": 1e400}', "beyond the range of 64-bit floats"),
        ('{"n": "\\ud800"}', "half of a surrogate pair"),
        ("[" * 100_000, "must not nest deeper than 200"),
        ('{"n": %s}' % ("9" * 4_301), "more than 4,300 digits"),
        ("null", "must be a JSON object"),
        ('{"n": 1.5}', "$.n: must be integer"),
    ],
)
def test_arguments_that_a_tool_does_not_take_are_told_in_words(text: str, problem: str) -> None:
    with pytest.raises(BadArguments, match="arguments") as bad:
        arguments_of(tool(), text)
    assert problem in str(bad.value)


def test_a_tool_without_a_schema_takes_no_arguments() -> None:
    assert arguments_of(tool(schema=""), "{}") == {}
    with pytest.raises(BadArguments):
        arguments_of(tool(schema=""), '{"n": 1}')
