"""Functions as tools: the schema that the model sees, the arguments that the function gets, its result."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import typing
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

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


class Size(StrEnum):
    SMALL = "small"


class Order(BaseModel):
    model_config = ConfigDict(title="Order")
    size: Size
    note: Annotated[str, Field(title="What else")] = ""


@dataclass
class Parcel:
    orders: list[Order]


class Old(typing.TypedDict):
    city: str


class Shop:
    def reserve(self, item: str) -> str:
        return f"one {item}"


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


def test_a_schema_has_the_titles_that_its_author_set_and_no_others() -> None:
    def send(parcel: Parcel, to: Place, title: str, how: Annotated[str | None, Field(title="How")] = None) -> None: ...

    assert json.loads(tool(send, name="parcel.send").registered().parameters_schema_json) == {
        "type": "object",
        "properties": {
            "parcel": {"$ref": "#/$defs/Parcel"},
            "to": {"$ref": "#/$defs/Place"},
            "title": {"type": "string"},
            "how": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None, "title": "How"},
        },
        "required": ["parcel", "to", "title"],
        "additionalProperties": False,
        "$defs": {
            "Parcel": {
                "type": "object",
                "properties": {"orders": {"type": "array", "items": {"$ref": "#/$defs/Order"}}},
                "required": ["orders"],
                "additionalProperties": False,
            },
            "Order": {
                "title": "Order",
                "type": "object",
                "properties": {
                    "size": {"$ref": "#/$defs/Size"},
                    "note": {"type": "string", "default": "", "title": "What else"},
                },
                "required": ["size"],
            },
            "Size": {"type": "string", "enum": ["small"]},
            "Place": {
                "description": "Where.",
                "type": "object",
                "properties": {"city": {"type": "string"}, "country": {"type": "string", "default": "DE"}},
                "required": ["city"],
            },
        },
    }


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


def underscored(_item: str) -> None: ...
def configured(model_config: str) -> None: ...
def named_as_pydantic_does(model_validate: str) -> None: ...
def sometimes_called(call: Call | None) -> None: ...
def with_a_function(how: Callable[[], int]) -> None: ...
def with_an_old_dict(place: Old) -> None: ...


@pytest.mark.parametrize(
    ("function", "options", "why"),
    [
        (lambda *numbers: 0, {"name": "sum"}, "named parameters only"),
        (lambda **more: 0, {"name": "more"}, "named parameters only"),
        (lambda: 0, {}, "no name for a tool"),
        (lambda: 0, {"name": "a b"}, "no name for a tool"),
        (underscored, {}, "'underscored' must not have a parameter '_item': no argument's name begins with '_'"),
        (configured, {}, "'configured' must not have a parameter 'model_config': no argument's name"),
        (
            named_as_pydantic_does,
            {},
            "'named_as_pydantic_does' has a parameter that cannot be an argument: .*conflicts",
        ),
        (sometimes_called, {}, "'sometimes_called' has a parameter that cannot be an argument: .*Call"),
        (with_a_function, {}, "'with_a_function' has a parameter that cannot be an argument"),
        (Shop.reserve, {}, r"'reserve' is a method without its object: .* worker\.tool\(shop\.reserve\)"),
    ],
)
def test_what_cannot_be_a_tool_is_refused_when_it_is_made(function: Any, options: dict[str, Any], why: str) -> None:
    with pytest.raises(TypeError, match=why):
        tool(function, **options)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="pydantic takes it there")
def test_a_typed_dict_that_pydantic_does_not_take_is_refused() -> None:
    with pytest.raises(TypeError, match=r"cannot be an argument: .*typing_extensions\.TypedDict"):
        tool(with_an_old_dict)


async def test_a_method_of_an_object_is_a_tool(executor: Executor) -> None:
    assert await run(Shop().reserve, executor, '{"item": "tea"}') == ["one tea"]


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
