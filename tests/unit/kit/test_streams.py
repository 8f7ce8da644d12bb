"""What is particular to streams: errors in the middle, both ways to write, prompt release."""

import asyncio
from contextlib import suppress

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from janus_kit.errors import InvalidArgument, Unavailable
from janus_kit.interceptors.call import Method
from janus_kit.interceptors.guard import decoder
from janus_kit.server import serve
from janus_kit.settings import ServerSettings

LOCAL = ServerSettings(lame_duck_s=0, listen="127.0.0.1:0")
SERVICE = "janus.probe.v1.ProbeService"


async def test_an_error_in_mid_stream_follows_what_was_sent_before(probe, refusal):
    sent = []

    async def act(text):
        if len(sent) == 3:
            raise Unavailable("redis")
        sent.append(text)
        return str(len(sent))

    probe.act, probe.answers = act, 10
    call = probe.start("ServerStream", [b""])
    assert [(await call.read()).text for _ in range(3)] == ["1", "2", "3"]
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    assert refusal(raised.value).metadata == {"part": "redis"}


@pytest.mark.parametrize("shape", ["ClientStream", "Bidi"])
async def test_garbage_after_good_messages_is_refused_when_it_is_reached(probe, shape, ask, refusal):
    seen = []

    async def act(text):
        seen.append(text)
        return text

    probe.act = act
    good = ask(text="good").SerializeToString()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for _ in probe.raw(shape, [good, good, b"\xff"]):
            pass
    assert refusal(raised.value).reason == "REQUEST_UNDECODABLE"
    assert seen == ["good", "good"]


async def test_many_messages_arrive_in_order(probe):
    texts = [str(number) for number in range(200)]
    assert await probe.call("Bidi", *texts) == texts
    assert await probe.call("ClientStream", *texts) == [" ".join(texts)]


async def test_a_stream_cancelled_while_it_writes_lets_go_of_its_source(probe, ask):
    """The generator waits at its `yield` then, so nothing but closing it would end it."""
    probe.answers = 1_000_000_000

    async def act(text):
        return "x" * 60_000

    probe.act = act
    call = probe.start("ServerStream", [ask().SerializeToString()])
    await call.read()
    probe.closed.clear()
    # Not reading fills the transport's window, which leaves the server inside a write.
    call.cancel()
    await asyncio.wait_for(probe.closed.wait(), 5)


@pytest.mark.parametrize("sent_before", [0, 1])
async def test_a_stream_that_is_cancelled_while_a_message_goes_out_ends_with_a_status(probe, refusal, sent_before):
    sent = []

    async def act(text):
        if len(sent) == sent_before:
            # Runs when the message is on its way.
            asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)
        sent.append(text)
        return text

    probe.act, probe.answers = act, 10
    call = probe.start("ServerStream", [b""])
    async with asyncio.timeout(5):
        for _ in range(sent_before + 1):
            await call.read()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
    assert refusal(raised.value).code is grpc.StatusCode.CANCELLED
    assert len(sent) == sent_before + 1


async def test_a_caller_that_reads_nothing_does_not_keep_cancelled_work_going(probe):
    cut = asyncio.Event()

    async def act(text):
        task = asyncio.current_task()

        def cancel():
            # What is closed from here on is the message's source; making the message was closed before.
            probe.closed.clear()
            task.cancel()
            cut.set()

        asyncio.get_running_loop().call_later(0.05, cancel)
        return "x" * 10_000_000

    probe.act = act
    call = probe.start("ServerStream", [b""])
    async with asyncio.timeout(10):
        await cut.wait()
        await probe.closed.wait()
    call.cancel()


@pytest.mark.parametrize("shape", ["ServerStream", "Bidi"])
async def test_a_servicer_may_read_and_write_through_its_context(probe, monkeypatch, shape, refusal):
    answer_type = type(await anext(probe.raw("Unary", [b""])))

    async def writing(request, context):
        await context.write(answer_type(text="written"))

    async def reading(requests, context):
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(answer_type(text=request.text))

    monkeypatch.setattr(probe, "_server_stream", writing)
    monkeypatch.setattr(probe, "_bidi", reading)
    async with (
        serve([probe.mount()], LOCAL) as host,
        grpc.aio.insecure_channel(host.address) as channel,
    ):
        assert await probe.call(shape, "written", channel=channel) == ["written"]
        if shape == "Bidi":
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                async for _ in probe.raw(shape, [b"\xff"], channel=channel):
                    pass
            assert refusal(raised.value).reason == "REQUEST_UNDECODABLE"


async def test_an_answer_of_the_wrong_type_is_an_incident(probe, refusal, monkeypatch, logs):
    async def nothing(request, context):
        return None

    monkeypatch.setattr(probe, "_unary", nothing)
    async with (
        serve([probe.mount()], LOCAL) as host,
        grpc.aio.insecure_channel(host.address) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await probe.call("Unary", channel=channel)
    assert refusal(raised.value).code is grpc.StatusCode.INTERNAL
    assert len(logs.named("internal_error")) == 1


@pytest.mark.parametrize("kind", ["unary_unary", "stream_stream"])
async def test_a_method_that_is_not_there_is_a_typed_refusal(probe, kind, refusal):
    method = getattr(probe.channel, kind)(f"/{SERVICE}/Nothing", None, None)
    answer = method(b"") if kind == "unary_unary" else method().read()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await answer
    refused = refusal(raised.value)
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED")


async def test_a_servicers_own_abort_is_kept(probe, monkeypatch, logs):
    async def aborting(request, context):
        await context.abort(grpc.StatusCode.OUT_OF_RANGE, "own words")

    monkeypatch.setattr(probe, "_unary", aborting)
    async with (
        serve([probe.mount()], LOCAL) as host,
        grpc.aio.insecure_channel(host.address) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await probe.call("Unary", channel=channel)
    assert raised.value.code() is grpc.StatusCode.OUT_OF_RANGE
    assert raised.value.details() == "own words"
    assert [line["rpc_status_code"] for line in logs.named("rpc")] == ["OUT_OF_RANGE"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_any_bytes_decode_or_are_refused_and_nothing_else(ask, raw):
    decode = decoder(Method("a.B/C", "janus.probe.v1.Ask", "inference.use"), ask.FromString, 200)
    with suppress(InvalidArgument):
        decode(raw)
