"""A whole mesh as its own process, driven from outside as a user would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message as ProtoMessage
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tests.fakes.data_folder import data_folder

from janus_api.content.v1 import message_pb2 as content
from janus_app.client import MeshNotUp, connect
from janus_app.embedded import read_state

UP_SECONDS = 60.0
LISTEN = ("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")


@dataclass
class Server:
    """`janus serve` on a data folder; can be killed and started again."""

    data: Path
    environment: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.data / "serve.log"

    def start(self) -> Server:
        inherited = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "janus_app",
                    "serve",
                    "--data",
                    str(self.data),
                    *LISTEN,
                    *self.arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=output,
                env=inherited | self.environment,
            )
        eventually(self._is_up, UP_SECONDS, lambda: self.log.read_text(errors="replace")[-4000:])
        return self

    def _is_up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text(errors="replace")[-4000:]
        state = read_state(self.data)
        if state is None or state.pid != self.process.pid or not state.published.get("http"):
            return False
        try:
            with connect(self.data):
                return True
        except MeshNotUp:
            return False

    @property
    def http(self) -> str:
        state = read_state(self.data)
        assert state is not None
        return f"http://{state.published['http']}"

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(30)


@contextmanager
def server(**options: Any) -> Iterator[Server]:
    """A server on a folder of its own, stopped at the end."""
    with data_folder() as folder:
        served = Server(folder, **options)
        try:
            yield served.start()
        finally:
            if served.process is not None:
                served.stop()


def eventually(check: Callable[[], Any], seconds: float = 15.0, otherwise: Callable[[], str] = lambda: "") -> Any:
    """The first true answer of `check`; fails after `seconds`."""
    until = time.monotonic() + seconds
    while True:
        if answer := check():
            return answer
        assert time.monotonic() < until, f"not so after {seconds} s: {check} {otherwise()}"
        time.sleep(0.05)


def user(text: str, name: str = "") -> content.Message:
    return content.Message(role=content.ROLE_USER, name=name, parts=[content.Part(text=text)])


def detail(error: grpc.RpcError, kind: type[ProtoMessage]) -> Any:
    """The detail of this kind in the error's status; fails when there is none."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    for packed in status.details:
        found = kind()
        if packed.Unpack(found):
            return found
    raise AssertionError(f"no {kind.DESCRIPTOR.name} in {status}")


def reason(error: grpc.RpcError) -> str:
    return str(detail(error, error_details_pb2.ErrorInfo).reason)


def fields(error: grpc.RpcError) -> list[str]:
    return [violation.field for violation in detail(error, error_details_pb2.BadRequest).field_violations]
