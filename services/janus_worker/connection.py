"""One stream to the server: registers, reads, writes, and gives up when nothing is heard."""

import asyncio
import logging
from typing import Any

import grpc
from google.rpc import code_pb2

from janus_api.tools.v1 import tool_worker_service_pb2 as pb
from janus_worker.calls import Calls

_log = logging.getLogger("janus_worker")

_REGISTER_S = 15.0
# Results that were sent and not confirmed, before the server is asked what it has.
_MOST_UNCONFIRMED_BYTES = 4 * 1024 * 1024


class Lost(Exception):
    """The stream is of no use any more."""


class Connection:
    """Lives as long as its stream; ``run`` returns when the server has ended it."""

    def __init__(self, stream: Any, register: pb.Register, calls: Calls, is_stopping: asyncio.Event) -> None:
        self._stream = stream
        self._register = register
        self._calls = calls
        self._is_stopping = is_stopping
        self._has_news = asyncio.Event()
        # Calls that the server knows this connection to have.
        self._known: set[str] = set()
        # Results that went over this connection; those that did so before the newest heartbeat.
        self._sent: set[str] = set()
        self._asked: set[str] = set()
        self._awaits_beat = False
        self._has_drained = False
        self._beat_s = 0.0
        self._lease_s = _REGISTER_S

    async def run(self) -> None:
        """To the end of the stream, if the server says one. Raises Lost, or what gRPC raises."""
        await self._stream.write(pb.ConnectRequest(register=self._register))
        registered = await self._read()
        if registered is None or not registered.HasField("registered"):
            raise Lost("the server did not register the worker")
        self._beat_s = registered.registered.heartbeat_interval.ToTimedelta().total_seconds()
        self._lease_s = registered.registered.lease.ToTimedelta().total_seconds()
        self._calls.on_news = self._has_news.set
        writing = asyncio.create_task(self._write(), name="worker-writes")
        reading = asyncio.create_task(self._hear(), name="worker-reads")
        stopping = asyncio.create_task(self._stop(), name="worker-stops")
        tasks = [writing, reading, stopping]
        try:
            # A write that fails says less than the read that fails with it.
            await asyncio.wait([reading, writing], return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                await asyncio.wait([reading], timeout=1)
            (reading if reading.done() else writing).result()
        finally:
            self._calls.on_news = lambda: None
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # -- reading ---------------------------------------------------------------------

    async def _read(self) -> pb.ConnectResponse | None:
        """The next message, None at the end. Raises Lost when the server is silent for too long."""
        try:
            async with asyncio.timeout(self._lease_s):
                message = await self._stream.read()
        except TimeoutError:
            raise Lost("nothing was heard of the server") from None
        return None if message is grpc.aio.EOF else message

    async def _hear(self) -> None:
        while (message := await self._read()) is not None:
            match message.WhichOneof("message"):
                case "call":
                    self._known.add(message.call.call_id)
                    self._calls.start(message.call)
                case "cancel":
                    self._calls.drop(message.cancel.call_id, is_answered=message.cancel.call_id in self._known)
                case "heartbeat":
                    self._confirm(set(message.heartbeat.call_ids))
                case "drain":
                    # What runs is taken to the next connection, which is made at once.
                    _log.info("the server asks to connect anew: %s", message.drain.reason)
                    return
                case "closed":
                    status = message.closed.status
                    if status.code == code_pb2.OK:
                        # It ends a stream that drains once it has every result.
                        self._confirm(set(), set(self._sent))
                    else:
                        _log.info("the server ended the stream: %s", status.message)
                    return
        raise Lost("the stream ended without a word")

    def _confirm(self, held: set[str], sent: set[str] | None = None) -> None:
        """The server has for good what it was sent before it was asked, and does not hold any more."""
        self._awaits_beat = False
        self._known |= held
        for call_id in (self._asked if sent is None else sent) - held:
            self._sent.discard(call_id)
            self._calls.confirm(call_id)
        self._has_news.set()

    # -- writing ---------------------------------------------------------------------

    async def _write(self) -> None:
        """All that is written, from one place. Begins with the calls of earlier connections."""
        await self._beat()
        beat_at = self._now() + self._beat_s
        while True:
            try:
                async with asyncio.timeout_at(beat_at):
                    await self._has_news.wait()
            except TimeoutError:
                await self._beat()
                beat_at = self._now() + self._beat_s
            self._has_news.clear()
            for progress in self._calls.progress():
                await self._say(progress=progress)
            for call_id, completed in list(self._calls.results.items()):
                if call_id in self._known and call_id not in self._sent:
                    await self._say(completed=completed)
                    self._sent.add(call_id)
            if self._is_stopping.is_set() and not self._has_drained:
                self._has_drained = True
                await self._say(drain=pb.Drain(reason="the worker stops"))
            if self._unconfirmed_bytes() > _MOST_UNCONFIRMED_BYTES:
                await self._beat()

    async def _beat(self) -> None:
        """Tell the server what this worker has; one question at a time, so that its answer is to this one."""
        if self._awaits_beat:
            return
        self._awaits_beat = True
        self._asked = set(self._sent)
        unsent = [call_id for call_id in self._calls.results if call_id not in self._sent]
        await self._say(heartbeat=pb.Heartbeat(call_ids=[*self._calls.running, *unsent]))

    async def _say(self, **message: Any) -> None:
        await self._stream.write(pb.ConnectRequest(**message))

    async def _stop(self) -> None:
        await self._is_stopping.wait()
        self._has_news.set()

    def _unconfirmed_bytes(self) -> int:
        return sum(self._calls.results[call_id].ByteSize() for call_id in self._sent if call_id in self._calls.results)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
