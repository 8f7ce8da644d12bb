"""What a run asks of the person at the terminal: consent to a call, or an answer."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import grpc
from rich.console import Console

from janus_api.orchestration.v1 import agent_pb2, event_pb2, run_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_app.client import PATIENCE_SECONDS, PAUSE_SECONDS, explain
from janus_app.following import CUT
from janus_app.terminal import plain

Reply = TypeVar("Reply", pb.ConverseResponse, pb.WatchRunResponse)

_CALL_S = 30.0
_DECISIONS = {
    "y": agent_pb2.APPROVAL_DECISION_APPROVED,
    "yes": agent_pb2.APPROVAL_DECISION_APPROVED,
    "n": agent_pb2.APPROVAL_DECISION_DECLINED,
    "no": agent_pb2.APPROVAL_DECISION_DECLINED,
}


class Answering:
    """Asks the person what runs ask, and gives them the answers."""

    def __init__(self, orchestration: Any, console: Console) -> None:
        self._orchestration = orchestration
        self._console = console

    def through(self, replies: Iterable[Reply]) -> Iterator[Reply]:
        """The replies; after one that asks, and once it is shown, the person is asked.

        Raises EOFError when nobody is there, and grpc.RpcError when the mesh
        is not.
        """
        for reply in replies:
            yield reply
            self._ask(reply.event)

    def _ask(self, event: event_pb2.RunEvent) -> None:
        match event.WhichOneof("event"):
            case "approval_requested":
                approval = event.approval_requested.approval
                if self._is_open(event.run_id, approval.approval_id):
                    self._ask_for_consent(event.run_id, approval)
            case "input_requested":
                asked = event.input_requested.input
                if self._is_open(event.run_id, asked.input_id):
                    self._ask_for_answer(event.run_id, asked)

    def _is_open(self, run_id: str, name: str) -> bool:
        """Whether it still waits: a run is also shown after somebody has answered it."""
        waiting = self._call("GetRun", pb.GetRunRequest(run_id=run_id)).run.waiting_for
        return any(name in (each.approval.approval_id, each.input.input_id) for each in waiting)

    def _ask_for_consent(self, run_id: str, approval: run_pb2.PendingApproval) -> None:
        word, comment = "", ""
        while word not in _DECISIONS:
            said = self._console.input("[bold]may it run? y, or n and why ›[/] ").strip()
            word, _, comment = said.partition(" ")
            word = word.lower()
        answer = pb.ApprovalAnswer(
            run_id=run_id, approval_id=approval.approval_id, decision=_DECISIONS[word], comment=comment.strip()
        )
        self._give("ResolveApproval", pb.ResolveApprovalRequest(approval=answer, request_id=uuid.uuid4().hex))

    def _ask_for_answer(self, run_id: str, asked: run_pb2.PendingInput) -> None:
        if asked.schema_json:
            self._console.print(plain(f"  JSON that holds to {asked.schema_json}"), style="dim", highlight=False)
        while True:
            said = self._console.input("[bold]answer ›[/] ").strip()
            answer = pb.InputAnswer(run_id=run_id, input_id=asked.input_id, answer_json=_as_json(said, asked))
            if said and self._give("ProvideInput", pb.ProvideInputRequest(answer=answer, request_id=uuid.uuid4().hex)):
                return

    def _give(self, method: str, request: Any) -> bool:
        """False when another answer may be taken."""
        try:
            self._call(method, request)
        except grpc.RpcError as error:
            if error.code() in CUT:
                raise
            self._console.print(explain(error), style="red", highlight=False, markup=False)
            return error.code() is not grpc.StatusCode.INVALID_ARGUMENT
        return True

    def _call(self, method: str, request: Any) -> Any:
        """An answer, also from a mesh that is started again meanwhile."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return getattr(self._orchestration, method)(request, timeout=_CALL_S)
            except grpc.RpcError as error:
                if error.code() not in CUT or time.monotonic() >= give_up:
                    raise
            time.sleep(PAUSE_SECONDS)


def _as_json(said: str, asked: run_pb2.PendingInput) -> str:
    """What was typed: JSON where a schema asks for it and it is some, else a text."""
    if asked.schema_json:
        try:
            json.loads(said)
        except ValueError:
            pass
        else:
            return said
    return json.dumps(said)
