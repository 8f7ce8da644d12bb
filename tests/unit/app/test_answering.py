"""What a chat asks the person, and what becomes of the answers."""

from __future__ import annotations

import io
import json
from typing import Any

import grpc
import pytest
from rich.console import Console

from janus_api.orchestration.v1 import agent_pb2, event_pb2, run_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_app import answering
from janus_app.answering import Answering

NUMBER = '{"type": "object", "properties": {"n": {"type": "integer"}}}'


class Refusal(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "not so"

    def trailing_metadata(self) -> tuple[()]:
        return ()


class Orchestration:
    """Says that these are awaited, and refuses as many answers as it has refusals."""

    def __init__(self, *awaited: str) -> None:
        self.awaited = awaited
        self.refusals: list[grpc.StatusCode] = []
        self.given: list[Any] = []

    def GetRun(self, request: pb.GetRunRequest, **_: Any) -> pb.GetRunResponse:
        waiting = [run_pb2.PendingCall(input=run_pb2.PendingInput(input_id=name)) for name in self.awaited]
        return pb.GetRunResponse(run=run_pb2.Run(id=request.run_id, waiting_for=waiting))

    def ResolveApproval(self, request: pb.ResolveApprovalRequest, **_: Any) -> None:
        self._take(request)

    def ProvideInput(self, request: pb.ProvideInputRequest, **_: Any) -> None:
        self._take(request)

    def _take(self, request: Any) -> None:
        self.given.append(request)
        if self.refusals:
            raise Refusal(self.refusals.pop(0))


def approval(name: str) -> pb.ConverseResponse:
    asked = event_pb2.ApprovalRequested(approval=run_pb2.PendingApproval(approval_id=name))
    return pb.ConverseResponse(event=event_pb2.RunEvent(run_id="run_1", approval_requested=asked))


def question(name: str, schema: str = "") -> pb.ConverseResponse:
    asked = event_pb2.InputRequested(input=run_pb2.PendingInput(input_id=name, question="?", schema_json=schema))
    return pb.ConverseResponse(event=event_pb2.RunEvent(run_id="run_1", input_requested=asked))


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, screen: io.StringIO) -> Any:
    """Show replies to a person who types these lines."""
    monkeypatch.setattr(answering, "PAUSE_SECONDS", 0)

    def asking(orchestration: Orchestration, typed: str, *replies: pb.ConverseResponse) -> list[pb.ConverseResponse]:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        return list(Answering(orchestration, Console(file=screen, width=160)).through(replies))

    return asking


@pytest.mark.parametrize(
    ("typed", "decision", "comment"),
    [
        ("y\n", agent_pb2.APPROVAL_DECISION_APPROVED, ""),
        ("perhaps\n\nYES\n", agent_pb2.APPROVAL_DECISION_APPROVED, ""),
        ("n  not on a Friday \n", agent_pb2.APPROVAL_DECISION_DECLINED, "not on a Friday"),
    ],
)
def test_a_person_decides(ask: Any, typed: str, decision: int, comment: str) -> None:
    orchestration = Orchestration("a1")
    ask(orchestration, typed, approval("a1"))
    (request,) = orchestration.given
    given = request.approval
    assert (given.run_id, given.approval_id, given.decision, given.comment) == ("run_1", "a1", decision, comment)


def test_what_somebody_has_answered_already_is_not_asked(ask: Any) -> None:
    orchestration = Orchestration("a2")
    replies = [approval("a1"), question("i1"), approval("a2"), pb.ConverseResponse()]
    assert ask(orchestration, "y\n", *replies) == replies
    assert [request.approval.approval_id for request in orchestration.given] == ["a2"]


@pytest.mark.parametrize(
    ("typed", "schema", "answer"),
    [("blue", "", "blue"), ("7", "", "7"), ('{"n": 7}', NUMBER, {"n": 7}), ("blue", '{"type": "string"}', "blue")],
)
def test_a_text_is_taken_for_json_only_where_a_schema_asks_for_it(
    ask: Any, typed: str, schema: str, answer: object
) -> None:
    orchestration = Orchestration("i1")
    ask(orchestration, f"\n{typed}\n", question("i1", schema))
    (request,) = orchestration.given
    assert json.loads(request.answer.answer_json) == answer


def test_an_answer_that_the_question_does_not_allow_is_asked_for_again(ask: Any, screen: io.StringIO) -> None:
    orchestration = Orchestration("i1")
    orchestration.refusals = [grpc.StatusCode.INVALID_ARGUMENT]
    ask(orchestration, 'seven\n{"n": 7}\n', question("i1", NUMBER))
    assert [request.answer.answer_json for request in orchestration.given] == ['"seven"', '{"n": 7}']
    assert NUMBER in screen.getvalue()
    assert "INVALID_ARGUMENT: not so" in screen.getvalue()


def test_what_was_decided_meanwhile_is_said_and_not_asked_again(ask: Any, screen: io.StringIO) -> None:
    orchestration = Orchestration("a1", "i1")
    orchestration.refusals = [grpc.StatusCode.FAILED_PRECONDITION] * 2
    replies = [approval("a1"), question("i1"), pb.ConverseResponse()]
    assert ask(orchestration, "y\nblue\n", *replies) == replies
    assert screen.getvalue().count("FAILED_PRECONDITION: not so") == 2


def test_an_answer_is_given_to_a_mesh_that_is_started_again_once(ask: Any) -> None:
    orchestration = Orchestration("a1")
    orchestration.refusals = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED]
    ask(orchestration, "y\n", approval("a1"))
    assert len(orchestration.given) == 3
    assert len({request.request_id for request in orchestration.given}) == 1


def test_an_answer_that_finds_no_mesh_is_given_up(
    ask: Any, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "PATIENCE_SECONDS", 0)
    orchestration = Orchestration("a1")
    orchestration.refusals = [grpc.StatusCode.UNAVAILABLE]
    with pytest.raises(Refusal):
        ask(orchestration, "y\n", approval("a1"))
    assert len(orchestration.given) == 1


def test_where_nobody_is_nothing_is_answered(ask: Any) -> None:
    orchestration = Orchestration("a1")
    with pytest.raises(EOFError):
        ask(orchestration, "", approval("a1"))
    assert not orchestration.given
