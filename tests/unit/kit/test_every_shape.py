"""What every call passes, for each of the four RPC shapes."""

import asyncio
from contextlib import suppress

import grpc
import pytest
from google.rpc import error_details_pb2
from prometheus_client import REGISTRY

from janus_kit.auth.identity import Identity, current_identity
from janus_kit.errors import InvalidArgument, NotFound, Unauthenticated, Unavailable
from janus_kit.interceptors.context import current_request_id, remaining_seconds
from janus_kit.settings import ServerSettings

pytestmark = pytest.mark.parametrize("shape", ["Unary", "ServerStream", "ClientStream", "Bidi"])
SERVICE = "janus.probe.v1.ProbeService"


async def test_a_call_is_answered(probe, shape):
    assert await probe.call(shape, "hello") == ["hello"]


async def test_garbage_bytes_are_an_invalid_argument_naming_the_message(probe, shape, refusal):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for _ in probe.raw(shape, [b"\x0a\xff\xff\xff\xff"]):
            pass
    refused = refusal(raised.value)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reason == "REQUEST_UNDECODABLE"
    violation = refused.one(error_details_pb2.BadRequest).field_violations[0]
    assert violation.field == "request"
    assert "janus.probe.v1.Ask" in violation.description


async def test_invalid_utf8_is_an_invalid_argument(probe, shape, refusal):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for _ in probe.raw(shape, [b"\x0a\x02\xc3\x28"]):
            pass
    assert refusal(raised.value).reason == "REQUEST_UNDECODABLE"


async def test_bytes_nested_too_deep_are_an_invalid_argument(probe, shape, refusal, ask):
    deep = ask()
    inner = deep
    for _ in range(99):
        inner = inner.nested
    inner.text = "bottom"
    nested = deep.SerializeToString()
    for _ in range(60):
        nested = b"\x12" + _varint(len(nested)) + nested
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for _ in probe.raw(shape, [nested]):
            pass
    assert refusal(raised.value).reason == "REQUEST_UNDECODABLE"


async def test_a_message_above_the_documented_size_is_refused_with_both_sizes(serving, shape, refusal):
    settings = ServerSettings(lame_duck_s=0, listen="127.0.0.1:0", max_message_bytes=1024)
    async with serving(settings) as probe:
        assert await probe.call(shape, "x" * 1000)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await probe.call(shape, "x" * 1024)
    refused = refusal(raised.value)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.one(error_details_pb2.BadRequest).field_violations[0].field == "request"
    assert refused.metadata["limit_bytes"] == "1024"
    assert int(refused.metadata["actual_bytes"]) > 1024


async def test_a_domain_error_arrives_with_its_details(probe, shape, refusal):
    async def act(text):
        raise InvalidArgument("text", "must not be sad")

    probe.act = act
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await probe.call(shape)
    refused = refusal(raised.value)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reason == "FIELD_INVALID"
    violation = refused.one(error_details_pb2.BadRequest).field_violations[0]
    assert (violation.field, violation.description) == ("text", "must not be sad")


async def test_what_may_be_retried_says_when_in_both_languages(probe, shape, refusal):
    async def act(text):
        raise Unavailable("postgres", retry_after=1.5)

    probe.act = act
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await probe.call(shape)
    refused = refusal(raised.value)
    assert refused.code is grpc.StatusCode.UNAVAILABLE
    assert refused.metadata["part"] == "postgres"
    delay = refused.one(error_details_pb2.RetryInfo).retry_delay
    assert delay.ToTimedelta().total_seconds() == 1.5
    assert refused.trailers["grpc-retry-pushback-ms"] == "1500"


async def test_a_bug_shows_an_incident_id_that_the_log_explains(probe, shape, refusal, logs, eventually):
    async def act(text):
        raise KeyError("SELECT secret FROM table")

    probe.act = act
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await probe.call(shape)
    refused = refusal(raised.value)
    assert refused.code is grpc.StatusCode.INTERNAL
    assert refused.reason == "INTERNAL"
    incident = refused.metadata["incident_id"]
    everything = str(raised.value) + str(refused)
    assert "KeyError" not in everything
    assert "SELECT" not in everything
    await eventually(lambda: logs.named("internal_error"))
    (line,) = logs.named("internal_error")
    assert line["incident_id"] == incident
    assert line["tenant"] == "development"
    assert line["request_id"] == refused.trailers["x-request-id"]
    assert "KeyError" in str(line["exception"])


async def test_a_refusal_inside_a_task_group_is_the_answer(probe, shape, refusal):
    async def refuse():
        raise NotFound("thread", "thr_1")

    async def act(text):
        async with asyncio.TaskGroup() as group:
            group.create_task(refuse())
            group.create_task(asyncio.Event().wait())
        return text

    probe.act = act
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await probe.call(shape)
    refused = refusal(raised.value)
    assert refused.code is grpc.StatusCode.NOT_FOUND
    assert refused.text == "thread 'thr_1' was not found"
    assert refused.one(error_details_pb2.ResourceInfo).resource_type == "thread"


async def test_a_cancelled_inner_task_is_not_mistaken_for_the_caller(probe, shape, refusal):
    async def act(text):
        inner = asyncio.create_task(asyncio.Event().wait())
        inner.cancel()
        await inner
        return text

    probe.act = act
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await probe.call(shape)
    refused = refusal(raised.value)
    assert (refused.code, refused.reason) == (grpc.StatusCode.CANCELLED, "CANCELLED")


async def test_a_call_that_cancels_its_own_task_still_gets_an_answer(probe, shape, refusal):
    async def act(text):
        asyncio.current_task().cancel()
        await asyncio.sleep(0)
        return text

    probe.act = act
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await probe.call(shape)
    assert refusal(raised.value).code is grpc.StatusCode.CANCELLED


async def test_without_a_credential_the_caller_is_the_developer(probe, shape):
    async def act(text):
        identity = current_identity()
        return f"{identity.tenant} {identity.subject} {'memory.write' in identity.scopes}"

    probe.act = act
    assert await probe.call(shape) == ["development developer True"]


async def test_metadata_chooses_the_tenant(probe, shape):
    async def act(text):
        return current_identity().tenant

    probe.act = act
    assert await probe.call(shape, metadata=(("janus-tenant", "acme"),)) == ["acme"]


@pytest.mark.parametrize(
    "metadata",
    [
        (("janus-tenant", "a b"),),
        (("janus-tenant", ""),),
        (("janus-tenant", "a" * 129),),
        (("janus-tenant", "one"), ("janus-tenant", "two")),
    ],
    ids=["space", "empty", "long", "twice"],
)
async def test_a_tenant_that_is_no_id_is_refused(probe, shape, metadata, refusal):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await probe.call(shape, metadata=metadata)
    refused = refusal(raised.value)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    violation = refused.one(error_details_pb2.BadRequest).field_violations[0]
    assert violation.field == "metadata.janus-tenant"


async def test_an_identity_without_the_scope_is_refused(serving, shape, refusal):
    class Reader:
        async def identify(self, call):
            return Identity("acme", "reader", frozenset({"inference.read"}))

    async with serving(authenticator=Reader()) as probe:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await probe.call(shape)
    refused = refusal(raised.value)
    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")
    assert refused.metadata == {"scope": "inference.use"}


async def test_a_caller_that_cannot_be_identified_is_refused(serving, shape, refusal):
    class Nobody:
        async def identify(self, call):
            raise Unauthenticated

    async with serving(authenticator=Nobody()) as probe:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await probe.call(shape)
    assert refusal(raised.value).code is grpc.StatusCode.UNAUTHENTICATED


async def test_the_server_ends_a_call_at_its_own_maximum(serving, shape, refusal):
    settings = ServerSettings(lame_duck_s=0, listen="127.0.0.1:0", max_deadline_s=0.05, max_stream_deadline_s=0.05)
    cancelled = asyncio.Event()

    async def act(text):
        assert 0 < remaining_seconds() <= 0.05
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with serving(settings) as probe:
        probe.act = act
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await probe.call(shape)
        assert cancelled.is_set()
    refused = refusal(raised.value)
    assert refused.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert refused.metadata == {"leg": "call"}


async def test_the_deadline_names_itself_also_when_cleaning_up_fails(serving, shape, refusal):
    settings = ServerSettings(lame_duck_s=0, listen="127.0.0.1:0", max_deadline_s=0.05, max_stream_deadline_s=0.05)

    async def act(text):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError("broken clean-up") from None

    async with serving(settings) as probe:
        probe.act = act
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await probe.call(shape)
    assert refusal(raised.value).reason == "DEADLINE_EXCEEDED"


async def test_the_callers_deadline_is_known_to_the_code(probe, shape):
    async def act(text):
        # gRPC rounds a timeout up on its way.
        return str(6 < remaining_seconds() < 8)

    probe.act = act
    assert await probe.call(shape, timeout=7) == ["True"]


async def test_a_caller_that_leaves_cancels_the_work_and_is_no_error(probe, shape, ask, logs, eventually):
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def act(text):
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    probe.act = act
    call = probe.start(shape, [ask(text="hello").SerializeToString()])
    await started.wait()
    call.cancel()
    await asyncio.wait_for(cancelled.wait(), 5)
    with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
        await call if shape in ("Unary", "ClientStream") else await call.read()
    await eventually(lambda: logs.named("rpc"))
    assert [line["rpc_status_code"] for line in logs.named("rpc")] == ["CANCELLED"]
    assert logs.at("error") == []
    assert logs.at("warning") == []


async def test_what_cancelled_work_raises_on_its_way_out_is_no_incident(probe, shape, ask, logs, eventually):
    started = asyncio.Event()

    async def act(text):
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("broken clean-up")

    probe.act = act
    call = probe.start(shape, [ask().SerializeToString()])
    await started.wait()
    call.cancel()
    await eventually(lambda: logs.named("rpc"))
    assert [line["rpc_status_code"] for line in logs.named("rpc")] == ["CANCELLED"]
    assert logs.at("error") == []


async def test_more_calls_at_once_than_allowed_are_refused_until_one_ends(serving, shape, refusal):
    settings = ServerSettings(lame_duck_s=0, listen="127.0.0.1:0", max_calls_per_identity=1, max_streams_per_identity=1)
    started, release = asyncio.Event(), asyncio.Event()
    rejected = {"service": SERVICE, "reason": f"concurrent_{'calls' if shape == 'Unary' else 'streams'}"}
    before = REGISTRY.get_sample_value("janus_admission_rejected_total", rejected) or 0

    async def act(text):
        started.set()
        await release.wait()
        return text

    async with serving(settings) as probe:
        probe.act = act
        first = asyncio.create_task(probe.call(shape))
        await started.wait()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await probe.call(shape)
        # Another tenant is another identity.
        second = asyncio.create_task(probe.call(shape, metadata=(("janus-tenant", "acme"),)))
        release.set()
        assert await first == ["hello"]
        assert await second == ["hello"]
        assert await probe.call(shape) == ["hello"]
    refused = refusal(raised.value)
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
    assert refused.one(error_details_pb2.QuotaFailure).violations[0].description == "1 at the same time"
    assert refused.one(error_details_pb2.RetryInfo).retry_delay.seconds == 1
    assert REGISTRY.get_sample_value("janus_admission_rejected_total", rejected) == before + 1


async def test_every_call_is_measured_by_method_and_status(probe, shape, eventually):
    def count(code):
        labels = {"rpc_method": f"{SERVICE}/{shape}", "rpc_status_code": code}
        return REGISTRY.get_sample_value("rpc_server_call_duration_seconds_count", labels) or 0

    async def refuse(text):
        raise NotFound("thread", "x")

    before = count("OK"), count("NOT_FOUND")
    await probe.call(shape)
    probe.act = refuse
    with pytest.raises(grpc.aio.AioRpcError):
        await probe.call(shape)
    await eventually(lambda: (count("OK"), count("NOT_FOUND")) == (before[0] + 1, before[1] + 1))
    assert REGISTRY.get_sample_value("janus_rpc_in_flight", {"rpc_method": f"{SERVICE}/{shape}"}) == 0


async def test_the_request_id_is_the_callers_in_code_log_and_trailers(probe, shape, logs, ask):
    async def act(text):
        return current_request_id()

    probe.act = act
    metadata = (("x-request-id", "req-from-client"),)
    call = probe.start(shape, [ask().SerializeToString()], metadata=metadata)
    answer = await (call if shape in ("Unary", "ClientStream") else call.read())
    assert answer.text == "req-from-client"
    assert dict(await call.trailing_metadata())["x-request-id"] == "req-from-client"
    (line,) = logs.named("rpc")
    assert line["request_id"] == "req-from-client"
    assert line["tenant"] == "development"
    assert line["rpc_status_code"] == "OK"


async def test_a_request_id_that_could_forge_log_lines_is_replaced(probe, shape):
    async def act(text):
        return current_request_id()

    probe.act = act
    (request_id,) = await probe.call(shape, metadata=(("x-request-id", 'a b"c'),))
    assert request_id.startswith("req_")


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])
