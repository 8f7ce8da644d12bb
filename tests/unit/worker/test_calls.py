"""The calls of a worker: each ends with one answer, whatever its function raises, and harms no other."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError, Executor, ThreadPoolExecutor
from typing import Any

import pytest
from google.rpc import code_pb2

from janus_api.tools.v1 import tool_worker_service_pb2 as pb
from janus_worker.calls import Calls
from janus_worker.tool import Tool, ToolError

RAISED = [
    StopIteration,
    StopAsyncIteration,
    SystemExit,
    GeneratorExit,
    BaseException,
    asyncio.CancelledError,
    CancelledError,
    TimeoutError,
    ValueError,
]


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
async def serve(executor: Executor) -> AsyncIterator[Callable[[Any], Calls]]:
    """Makes the calls of a worker with one function, of which one call has begun."""
    made: list[Calls] = []

    def serve(function: Any) -> Calls:
        calls = begun(function, executor)
        made.append(calls)
        return calls

    yield serve
    for calls in made:
        await calls.close()


def begun(function: Any, executor: Executor) -> Calls:
    tool = Tool.of(function, name="it", description="", side_effect="at_most_once", timeout=None)
    calls = Calls({"it": tool}, executor)
    calls.start(pb.Call(call_id="c", tool="it", arguments_json="{}"))
    return calls


async def answer(calls: Calls) -> pb.CallCompleted:
    has_news = asyncio.Event()
    calls.on_news = has_news.set
    async with asyncio.timeout(5):
        while not calls.results:
            has_news.clear()
            await has_news.wait()
    assert calls.running == []
    return calls.results["c"]


@pytest.mark.parametrize("raised", [*RAISED, KeyboardInterrupt])
async def test_what_a_function_on_a_thread_raises_is_the_failure_of_its_call(
    serve: Callable[[Any], Calls], caplog: pytest.LogCaptureFixture, raised: type[BaseException]
) -> None:
    def fail() -> None:
        raise raised("a secret")

    assert_failed(await answer(serve(fail)), caplog, raised)


@pytest.mark.parametrize("raised", RAISED)
async def test_what_a_function_with_async_raises_is_the_failure_of_its_call(
    serve: Callable[[Any], Calls], caplog: pytest.LogCaptureFixture, raised: type[BaseException]
) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise raised("a secret")

    assert_failed(await answer(serve(fail)), caplog, raised)


def assert_failed(completed: pb.CallCompleted, caplog: pytest.LogCaptureFixture, raised: type[BaseException]) -> None:
    """The model learns that it failed, and the log why."""
    assert (completed.error.code, completed.error.message) == (code_pb2.INTERNAL, "the tool failed")
    (record,) = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert record.getMessage() == "the tool 'it' failed in call c"
    assert record.exc_info is not None
    error = record.exc_info[1]
    (cause,) = [each for each in (error, error.__cause__ if error else None) if isinstance(each, raised)]
    assert traceback.extract_tb(cause.__traceback__)[-1].name == "fail"


async def test_a_call_that_is_cancelled_is_no_failure(
    serve: Callable[[Any], Calls], caplog: pytest.LogCaptureFixture
) -> None:
    has_begun = asyncio.Event()

    async def wait() -> None:
        has_begun.set()
        await asyncio.Event().wait()

    calls = serve(wait)
    await asyncio.wait_for(has_begun.wait(), 5)
    calls.drop("c", is_answered=True)
    assert (await answer(calls)).error.code == code_pb2.CANCELLED
    assert caplog.records == []


def test_ctrl_c_in_a_function_with_async_ends_the_process(executor: Executor) -> None:
    async def interrupted() -> None:
        raise KeyboardInterrupt

    working: set[asyncio.Task[Any]] = set()

    async def main() -> None:
        calls = begun(interrupted, executor)
        working.update(asyncio.all_tasks() - {asyncio.current_task()})
        await answer(calls)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    (task,) = working
    assert isinstance(task.exception(), KeyboardInterrupt)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("no such place", "no such place"),
        ("é" * 3_000_000, "é" * 32_768 + "\n[the rest is left out]"),
        ("half a pair: \ud800", "half a pair: ?"),
    ],
    ids=["short", "long", "surrogate"],
)
async def test_an_error_for_the_model_is_no_longer_than_the_server_takes(
    serve: Callable[[Any], Calls], said: str, told: str
) -> None:
    async def it() -> str:
        raise ToolError(said)

    completed = await answer(serve(it))
    assert ([part.text for part in completed.result.parts], completed.result.is_error) == ([told], True)
