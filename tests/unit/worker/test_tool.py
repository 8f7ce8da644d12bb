"""Functions as tools: the schema that the model sees, the arguments that the function gets, its result."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import date, timedelta
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from janus_api.content.v1 import message_pb2 as content
from janus_api.tools.v1 import tool_worker_service_pb2 as pb
from janus_kit.json_schema import problem
from janus_kit.json_schema.rules import schema_problem
from janus_worker import Call, ToolError, Worker
from janus_worker.tool import Tool


class Place(BaseModel):
    """Where."""

    city: str
    country: str = "DE"


def tool(function: Any, **options: Any) -> Tool:
    return Tool.of(function, **{"name": "", "description": "", "side_effect": "read_only", "timeout": None, **options})


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


async def run(function: Any, executor: Executor, arguments: str = "{}") -> list[str]:
    result = await tool(function).run(Call(pb.Call(call_id="c", idempotency_key="k")), arguments, executor)
    return [part.text for part in result.parts]


def test_a_tool_is_told_to_the_model_by_its_hints_and_its_docstring() -> None:
    async def weather(
        place: Place, day: date, days: Annotated[int, Field(ge=1, le=7, description="How many.")] = 1, *, call: Call
    ) -> str:
        """The weather.

        For days to come.
        """
        return ""

    told = tool(weather, timeout=timedelta(seconds=2)).registered()
    assert (told.name, told.description) == ("weather", "The weather.\n\nFor days to come.")
    assert (told.side_effect, told.timeout.seconds) == (pb.SIDE_EFFECT_READ_ONLY, 2)
    schema = json.loads(told.parameters_schema_json)
    assert schema_problem(told.parameters_schema_json, 64 * 1024, 32, 1_000) is None
    assert set(schema["properties"]) == {"place", "day", "days"}
    assert schema["required"] == ["place", "day"]
    assert schema["properties"]["days"]["description"] == "How many."
    good = {"place": {"city": "Berlin"}, "day": "2026-01-01"}
    assert problem(good, schema) is None
    for bad in ({}, good | {"days": 8}, good | {"call": "x"}, good | {"place": {}}):
        assert problem(bad, schema) is not None


async def test_a_function_gets_what_its_hints_say(executor: Executor) -> None:
    async def weather(place: Place, day: date, call: Call) -> str:
        return f"{place.city} {place.country} {day.year} {call.idempotency_key}"

    arguments = '{"place": {"city": "Berlin"}, "day": "2026-01-01"}'
    assert await run(weather, executor, arguments) == ["Berlin DE 2026 k"]
    with pytest.raises(ToolError, match=r"arguments are not right: place\.city: Field required; day: ") as bad:
        await run(weather, executor, '{"place": {}, "day": "secret"}')
    assert "secret" not in str(bad.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("text", ["text"]),
        (None, []),
        (7, ["7"]),
        ({"day": date(2026, 1, 1)}, ['{"day":"2026-01-01"}']),
        ([Place(city="Berlin")], ['[{"city":"Berlin","country":"DE"}]']),
        (content.ToolResult(parts=[content.Part(text="a"), content.Part(text="b")]), ["a", "b"]),
    ],
)
async def test_a_result_is_a_text_or_json_or_itself(executor: Executor, value: Any, said: list[str]) -> None:
    async def make() -> Any:
        return value

    assert await run(make, executor) == said


async def test_a_function_without_async_runs_on_a_thread_and_may_see_that_it_was_cancelled(
    executor: Executor,
) -> None:
    begun, seen = threading.Event(), threading.Event()

    def work(call: Call) -> str:
        begun.set()
        while not call.is_cancelled:
            begun.wait(0.01)
        seen.set()
        return threading.current_thread().name

    running = asyncio.create_task(run(work, executor))
    await asyncio.to_thread(begun.wait)
    running.cancel()
    (thread,) = await running
    assert thread != threading.current_thread().name
    assert seen.is_set()


@pytest.mark.parametrize(
    ("function", "options", "why"),
    [
        (lambda *numbers: 0, {"name": "sum"}, "named parameters only"),
        (lambda **more: 0, {"name": "more"}, "named parameters only"),
        (lambda: 0, {}, "no name for a tool"),
        (lambda: 0, {"name": "a b"}, "no name for a tool"),
    ],
)
def test_what_cannot_be_a_tool_is_refused_when_it_is_made(function: Any, options: dict[str, Any], why: str) -> None:
    with pytest.raises(TypeError, match=why):
        tool(function, **options)


def test_a_name_is_given_once() -> None:
    worker = Worker("127.0.0.1:1")

    @worker.tool
    def same() -> None: ...

    with pytest.raises(TypeError, match="a tool named 'same' already"):
        worker.tool(same)


def test_of_several_reports_the_newest_is_sent() -> None:
    told: list[None] = []
    call = Call(pb.Call(call_id="c"), lambda: told.append(None))
    call.progress(0.1)
    call.progress(7.0, "x" * 2_000)
    assert len(told) == 2
    assert call.take_progress() == pb.CallProgress(call_id="c", fraction=1.0, message="x" * 1_024)
    assert call.take_progress() is None
