"""What a command tells of a call that was refused."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from janus_app.client import explain
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
