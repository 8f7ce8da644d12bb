"""Errors: the contract's reasons, the mapping there and back, and its bounds."""

import inspect

import grpc
import pytest
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from janus_api.common.v1 import error_reason_pb2
from janus_kit import errors
from janus_kit.errors import FieldViolation
from janus_kit.rpc_errors import from_rpc, from_status, http_status, to_status, to_trailers

EXAMPLES = [
    errors.InvalidArgument("model", "must name a model", reason="MODEL_NOT_FOUND", metadata={"model": "x"}),
    errors.InvalidArgument.of([("a", "must be set"), FieldViolation("b[1].c", "must be positive")]),
    errors.FailedPrecondition("STATE_CONFLICT", "the run is over", {"state": "COMPLETED"}, subject="run_1"),
    errors.Aborted("VERSION_MISMATCH", "another write won", {"current_version": "7"}),
    errors.Aborted("REQUEST_IN_PROGRESS", "wait", None, 0.25),
    errors.AlreadyExists("REQUEST_ID_REUSED", "used with another body", "request", "req_1"),
    errors.Unauthenticated(),
    errors.PermissionDenied("SCOPE_MISSING", "needs memory.read", {"scope": "memory.read"}),
    errors.NotFound("thread", "thr_1"),
    errors.ResourceExhausted("QUOTA_EXCEEDED", "slow down", {"a": "b"}, 2.0, ("tenant", "10 per minute")),
    errors.Unavailable("postgres"),
    errors.Unavailable("", "overloaded", reason="PROVIDER_UNAVAILABLE", metadata={"provider": "openai"}),
    errors.DeadlineExceeded("first_event"),
    errors.DeadlineExceeded("first_event", "late", {"provider": "openai"}, 7.5),
    errors.Cancelled(),
    errors.OutOfRange("CURSOR_OUT_OF_RANGE", "beyond the end", {"last_sequence": "9"}),
    errors.Unimplemented(metadata={"method": "Reindex"}),
    errors.DataLoss("CHECKSUM_MISMATCH", "the file is damaged"),
    errors.Internal("inc_1"),
]


def shown(error):
    """Everything about an error that a caller may see."""
    return type(error), error.args, vars(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: f"{type(error).__name__}-{error.reason}")
def test_an_error_survives_the_way_to_another_service_and_back(error):
    assert shown(from_status(to_status(error))) == shown(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: f"{type(error).__name__}-{error.reason}")
def test_a_reason_is_one_of_the_contracts(error):
    assert f"ERROR_REASON_{error.reason}" in error_reason_pb2.ErrorReason.DESCRIPTOR.values_by_name
    code = grpc.StatusCode[error.code]
    assert to_trailers(error)[0] is code


def test_every_kind_of_error_is_exemplified_here():
    kinds = {
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.JanusError) and kind is not errors.JanusError
    }
    assert {type(error) for error in EXAMPLES} == kinds


def test_http_says_the_same():
    assert [http_status(error) for error in EXAMPLES] == [
        400, 400, 400, 409, 409, 409, 401, 403, 404, 429, 503, 503, 504, 504, 499, 400, 501, 500, 500,
    ]  # fmt: skip


def test_an_invalid_argument_needs_a_violation():
    with pytest.raises(ValueError, match="at least one"):
        errors.InvalidArgument.of([])


@given(
    st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=200),
    st.text(),
    st.dictionaries(st.text(), st.text()),
)
def test_a_status_always_fits_into_trailers(violations, name, metadata):
    """Callers' own text comes back in refusals: any length, lone surrogates, NUL."""
    invalid = errors.InvalidArgument.of([(f * 50, r * 50) for f, r in violations], metadata=metadata)
    for error in (invalid, errors.NotFound("thread", name * 10_000)):
        code, message, trailers = to_trailers(error)
        assert code is not None
        assert len(message.encode()) + sum(len(key) + len(value) for key, value in trailers) < 16_384
        assert "\x00" not in message


@pytest.mark.parametrize(
    ("code", "text", "kind", "reason"),
    [
        ("UNAVAILABLE", "failed to connect to 10.0.0.7", errors.Unavailable, "DEPENDENCY_UNAVAILABLE"),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", errors.DeadlineExceeded, "DEADLINE_EXCEEDED"),
        ("CANCELLED", "", errors.Cancelled, "CANCELLED"),
        (
            "RESOURCE_EXHAUSTED",
            "Received message larger than max (9 vs. 8)",
            errors.ResourceExhausted,
            "MESSAGE_TOO_LARGE",
        ),
        ("RESOURCE_EXHAUSTED", "too many streams", errors.ResourceExhausted, "OVERLOADED"),
        ("UNIMPLEMENTED", "Method not found!", errors.Unimplemented, "NOT_IMPLEMENTED"),
        ("UNKNOWN", "Unexpected <class 'KeyError'>: secret", errors.Unavailable, "DEPENDENCY_UNAVAILABLE"),
    ],
)
def test_what_grpc_itself_says_is_named_anew(code, text, kind, reason):
    raw = grpc.aio.AioRpcError(grpc.StatusCode[code], grpc.aio.Metadata(), grpc.aio.Metadata(), text)
    error = from_rpc(raw, part="memory")
    assert type(error) is kind
    assert error.reason == reason
    assert not text or text not in error.message
    assert "10.0.0.7" not in error.message


def test_a_broken_status_trailer_of_another_server_is_not_trusted():
    for value in (b"\xff\xff", to_status(errors.NotFound("a", "b")).SerializeToString()):
        trailers = grpc.aio.Metadata(("grpc-status-details-bin", value))
        raw = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), trailers, "")
        assert isinstance(from_rpc(raw), errors.Unavailable)


def test_a_status_of_somebody_else_is_not_taken_for_ours():
    status = to_status(errors.NotFound("a", "b"))
    info = error_details_pb2.ErrorInfo(reason="RESOURCE_NOT_FOUND", domain="googleapis.com")
    status.details[0].Pack(info)
    assert not isinstance(from_status(status), errors.NotFound)
