"""Janus's own tools, as far as they need nobody else."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from janus_orchestration.builtin_tools import BuiltInTools
from janus_orchestration.model import MemoryPolicy, SideEffect, Thread, Tool, ToolCall, ToolOutput, WhenNoWorker
from janus_orchestration.ports import ToolTask

NOON = datetime(2026, 7, 1, 12, 0, 0, 5, tzinfo=UTC)


class Stopped:
    """A clock that stands still."""

    def now(self) -> datetime:
        return NOON

    def monotonic(self) -> float:
        return 0.0


class Report:
    async def started(self, worker_id: str = "", attempt: int | None = None) -> None:
        assert (worker_id, attempt) == ("", None)

    async def progress(self, fraction: float | None, message: str) -> None:
        raise AssertionError("a built-in tool is done before it could say how far it is")


async def now(**arguments: Any) -> ToolOutput:
    nothing: Any = None
    task = ToolTask(
        tool=Tool("time.now", "", "", SideEffect.READ_ONLY, timedelta(seconds=60)),
        call=ToolCall("c1", "time.now", ""),
        arguments=arguments,
        attempt=1,
        epoch=1,
        step=2,
        timeout_s=30,
        when_no_worker=WhenNoWorker.FAIL,
        message_id="m",
        run_id="r",
        thread=Thread("t", "a", "", "", "", NOON, NOON),
        memory=MemoryPolicy(),
    )
    return await BuiltInTools(nothing, Stopped()).call("tenant", task, Report())


async def test_the_time_is_told_in_the_zone_that_was_asked_for() -> None:
    assert json.loads((await now()).text) == {
        "time": "2026-07-01T12:00:00+00:00",
        "weekday": "Wednesday",
        "time_zone": "UTC",
    }
    there = json.loads((await now(time_zone="Pacific/Kiritimati")).text)
    assert (there["time"], there["weekday"]) == ("2026-07-02T02:00:00+14:00", "Thursday")


@pytest.mark.parametrize("name", ["Moon/Crater", "../etc/passwd", "/etc/passwd", "Europe", "a\x00b", "é" * 300])
async def test_a_zone_that_is_none_is_an_error_for_the_model(name: str) -> None:
    output = await now(time_zone=name)
    assert output.is_error
    assert output.text.startswith("there is no time zone")


@pytest.mark.parametrize("name", ["time.now", "memory.search", "memory.remember"])
async def test_every_tool_takes_nothing_but_what_its_schema_names(name: str) -> None:
    nothing: Any = None
    (tool,) = await BuiltInTools(nothing, Stopped()).find("tenant", [name])
    schema = json.loads(tool.schema_json)
    assert schema["additionalProperties"] is False
    assert set(schema.get("required", ())) <= set(schema["properties"])
    assert tool.description
