"""What a chat does when its mesh goes away in the midst of an answer."""

from __future__ import annotations

import io
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from rich.console import Console
from tests.unit.app.test_answering import Refusal
from tests.unit.app.test_transcript import said

from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_api.orchestration.v1 import thread_pb2
from janus_app import following
from janus_app.chat import Chat


class Dying:
    """Says something, and is gone."""

    def PutAgent(self, request: pb.PutAgentRequest) -> None: ...

    def CreateThread(self, request: pb.CreateThreadRequest) -> pb.CreateThreadResponse:
        return pb.CreateThreadResponse(thread=thread_pb2.Thread(id="thr_1"))

    def Converse(self, request: pb.ConverseRequest) -> Iterator[pb.ConverseResponse]:
        event = said("Once upon ")
        event.run_id, event.cursor.sequence = "run_1", 1
        yield pb.ConverseResponse(event=event)
        raise Refusal(grpc.StatusCode.UNAVAILABLE)

    def WatchRun(self, request: pb.WatchRunRequest, **_: Any) -> None:
        raise Refusal(grpc.StatusCode.UNAVAILABLE)

    def CancelRun(self, request: pb.CancelRunRequest, **_: Any) -> None:
        raise Refusal(grpc.StatusCode.UNAVAILABLE)


def test_ctrl_c_ends_the_wait_for_a_mesh_and_not_the_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(following, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=interrupted))
    monkeypatch.setattr("sys.stdin", io.StringIO("Tell me a tale.\n/help\n"))
    screen = io.StringIO()
    mesh: Any = SimpleNamespace(orchestration=Dying(), address="here")
    chat = Chat(mesh, Console(file=screen, width=160), subject="me", model="")
    chat.open("", resume=False)
    chat.loop()
    _, tale, after = screen.getvalue().split("you ›")[:3]
    assert "the stream was cut; waiting for the mesh, up to 75 s …" in tale
    assert "The run goes on. UNAVAILABLE: not so" in tale
    assert "/quit" in after
