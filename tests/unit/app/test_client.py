"""What a command tells of a call that was refused, and which mesh it waits for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from janus_app import client
from janus_app.client import MeshNotUp, await_restart, connect, explain
from janus_app.embedded.state import State, save
from janus_kit.errors import FieldViolation, InvalidArgument, JanusError, NotFound
from janus_kit.rpc_errors import to_status


class Refusal(grpc.RpcError, grpc.Call):
    """An error as a blocking client gets it."""

    def __init__(self, error: JanusError, details: str) -> None:
        self._error, self._details = error, details

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode[self._error.code]

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        status = to_status(self._error)
        status.message = self._details
        return (("grpc-status-details-bin", status.SerializeToString()),)

    def initial_metadata(self) -> Any: ...
    def is_active(self) -> bool: ...
    def time_remaining(self) -> Any: ...
    def cancel(self) -> Any: ...
    def add_callback(self, callback: Any) -> Any: ...


TWO = InvalidArgument.of([FieldViolation("name", "must not be empty"), FieldViolation("limit", "at most 100")])


@pytest.mark.parametrize(
    ("error", "details", "told"),
    [
        (InvalidArgument("name", "must not be empty"), None, "INVALID_ARGUMENT: name: must not be empty"),
        (TWO, None, "INVALID_ARGUMENT: name: must not be empty; limit: at most 100"),
        (TWO, "two fields", "INVALID_ARGUMENT: two fields\n  name: must not be empty\n  limit: at most 100"),
        (NotFound("thread", "thr_1"), None, f"NOT_FOUND: {NotFound('thread', 'thr_1').message}"),
    ],
)
def test_every_rule_that_was_broken_is_said_once(error: JanusError, details: str | None, told: str) -> None:
    assert explain(Refusal(error, details or error.message)) == told


class Time:
    """Passes when somebody sleeps, and something happens at each sleep."""

    def __init__(self, *happenings: Callable[[], object]) -> None:
        self.now = 0.0
        self._happenings = iter(happenings)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        next(self._happenings, lambda: None)()


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Time]:
    monkeypatch.setattr(client, "READY_SECONDS", 0.5)

    def of(*happenings: Callable[[], object]) -> Time:
        time = Time(*happenings)
        monkeypatch.setattr(client, "time", time)
        return time

    return of


def running(grpc_address: str = "") -> State:
    """What the state file of a mesh says, which is in this process."""
    return State.ours({}).with_published({"grpc": grpc_address or None})


def test_a_mesh_that_stops_and_starts_again_is_waited_for(tmp_path: Path, passing: Callable[..., Time]) -> None:
    told: list[str] = []
    with ThreadPoolExecutor() as pool:
        server = grpc.server(pool)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        passing(
            lambda: save(tmp_path, State()),  # it has ended
            lambda: save(tmp_path, running()),  # the next one starts
            lambda: save(tmp_path, running(f"127.0.0.1:{port}")),
        )
        # It drains: the process is there, and its port is closed.
        save(tmp_path, running("127.0.0.1:1"))
        try:
            await_restart(tmp_path, lambda: told.append("waits"))
            with connect(tmp_path) as mesh:
                assert mesh.address == f"127.0.0.1:{port}"
            await_restart(tmp_path, lambda: told.append("waits again"))
        finally:
            server.stop(None).wait()
    assert told == ["waits"]


def test_a_mesh_that_does_not_come_back_is_given_up(tmp_path: Path, passing: Callable[..., Time]) -> None:
    told: list[str] = []
    time = passing(lambda: save(tmp_path, State()))
    save(tmp_path, running())
    await_restart(tmp_path, lambda: told.append("waits"))
    assert (time.now, told) == (75, ["waits"])
    with pytest.raises(MeshNotUp, match="No mesh is running"), connect(tmp_path):
        pass


def test_where_no_mesh_is_nobody_waits(tmp_path: Path, passing: Callable[..., Time]) -> None:
    told: list[str] = []
    time = passing()
    for _ in range(2):
        await_restart(tmp_path, lambda: told.append("waits"))
        save(tmp_path, State())
    assert (time.now, told) == (0, [])
