"""The calls that a worker has, whichever connection they came over.

A call goes on when its connection breaks, and its result is kept until the
server has it for good: the next connection says of both.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextlib import suppress

from google.rpc import code_pb2, status_pb2

from janus_api.content.v1 import message_pb2 as content
from janus_api.tools.v1 import tool_worker_service_pb2 as pb
from janus_worker.call import Call
from janus_worker.tool import Tool, ToolError

_log = logging.getLogger("janus_worker")

# What a message of the server's limit has room for.
_MOST_BYTES = 3_500_000
_MOST_TEXT_BYTES = 1024 * 1024
# Of an error it is the beginning that says what went wrong.
_MOST_ERROR_BYTES = 64 * 1024
_CLOSE_S = 1.0


class Calls:
    """Starts calls, and keeps their results. Belongs to one event loop."""

    def __init__(self, tools: Mapping[str, Tool], executor: Executor) -> None:
        self._tools = tools
        self._executor = executor
        self._loop = asyncio.get_running_loop()
        self._running: dict[str, tuple[Call, asyncio.Task[None]]] = {}
        self._forgotten: set[str] = set()
        self.results: dict[str, pb.CallCompleted] = {}
        """Not known to have reached the server for good."""
        self.on_news: Callable[[], None] = lambda: None
        """Called when there is a result or progress to send."""

    @property
    def running(self) -> list[str]:
        return list(self._running)

    @property
    def is_idle(self) -> bool:
        """Nothing runs, and the server has every result."""
        return not self._running and not self.results

    def start(self, call: pb.Call) -> None:
        """Begin a call, unless it was begun before."""
        if call.call_id in self._running or call.call_id in self.results:
            return
        told = Call(call, self._has_progress)
        task = asyncio.create_task(self._work(told, call.arguments_json), name=f"call-{call.call_id}")
        self._running[call.call_id] = (told, task)

    def drop(self, call_id: str, *, is_answered: bool) -> None:
        """Nobody waits for a call any more; whether it is answered all the same, for its credit."""
        self.results.pop(call_id, None)
        if call_id in self._running:
            call, task = self._running[call_id]
            if not is_answered:
                self._forgotten.add(call_id)
            call.cancel()
            task.cancel()

    def confirm(self, call_id: str) -> None:
        """The server has this result for good."""
        self.results.pop(call_id, None)

    def progress(self) -> list[pb.CallProgress]:
        """What is new of the calls that run."""
        found = (call.take_progress() for call, _ in self._running.values())
        return [progress for progress in found if progress is not None]

    async def close(self) -> None:
        """Stop what still runs, as far as it can be stopped."""
        tasks = [task for _, task in self._running.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_S)

    async def _work(self, call: Call, arguments_json: str) -> None:
        completed = pb.CallCompleted(call_id=call.id)
        try:
            result = await self._tools[call.tool].run(call, arguments_json, self._executor)
            _require_room(result)
            completed.result.CopyFrom(result)
        except ToolError as error:
            completed.result.CopyFrom(_said(str(error)))
        except KeyboardInterrupt:
            # On the loop's own thread that is somebody's Ctrl-C.
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it was, it is the tool's own, and the model is told
            if isinstance(error, asyncio.CancelledError) and self._running[call.id][1].cancelling():
                # Said so that the call's credit comes back.
                completed.error.CopyFrom(status_pb2.Status(code=code_pb2.CANCELLED, message="the call was cancelled"))
            else:
                _log.exception("the tool '%s' failed in call %s", call.tool, call.id)
                completed.error.CopyFrom(status_pb2.Status(code=code_pb2.INTERNAL, message="the tool failed"))
        finally:
            del self._running[call.id]
            if call.id in self._forgotten:
                self._forgotten.discard(call.id)
            else:
                self.results[call.id] = completed
            self.on_news()

    def _has_progress(self) -> None:
        # A function on a thread may outlive the loop.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(lambda: self.on_news())


def _said(error: str) -> content.ToolResult:
    """What the model reads of an error: no more of its text than the server takes."""
    told = error.encode(errors="replace")
    text = told[:_MOST_ERROR_BYTES].decode(errors="ignore")
    if len(told) > _MOST_ERROR_BYTES:
        text += "\n[the rest is left out]"
    return content.ToolResult(parts=[content.Part(text=text)], is_error=True)


def _require_room(result: content.ToolResult) -> None:
    """A result that the server would not take must not end the connection."""
    if result.ByteSize() > _MOST_BYTES or any(len(part.text.encode()) > _MOST_TEXT_BYTES for part in result.parts):
        raise ToolError("the tool ran, but its result is too large")
