"""The host: what it refuses to start, how it ends, and what it serves besides the mounts."""

import asyncio
import contextlib
import json
import os
import socket
from contextlib import suppress

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from janus_kit.auth.scopes import UndeclaredScopeError
from janus_kit.channel import connect
from janus_kit.mount import Mount
from janus_kit.server import serve
from janus_kit.settings import ServerSettings
from janus_kit.transport import ListenError

LOCAL = ServerSettings(lame_duck_s=0, listen="127.0.0.1:0", drain_s=5)


async def test_the_bound_address_is_told(probe):
    host, _, port = probe.host.address.rpartition(":")
    assert host == "127.0.0.1"
    assert int(port) > 0


async def test_an_rpc_without_a_scope_keeps_the_server_from_starting(probe):
    mount = Mount("open", lambda server: None, ("janus.probe.v1.OpenService",))
    with pytest.raises(UndeclaredScopeError, match=r"janus\.probe\.v1\.OpenService/Unary"):
        async with serve([mount], LOCAL):
            pass


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.org:0"])
async def test_the_development_identity_stays_on_this_machine(listen):
    with pytest.raises(ListenError, match="development identity"):
        async with serve([], ServerSettings(lame_duck_s=0, listen=listen)):
            pass


async def test_the_development_identity_leaves_this_machine_when_told_to():
    async with serve([], ServerSettings(lame_duck_s=0, listen="0.0.0.0:0", allow_remote_development=True)) as host:
        assert host.address.startswith("0.0.0.0:")


@pytest.mark.parametrize("listen", ["nonsense", "127.0.0.1:", ":50051", "127.0.0.1:70000"])
async def test_an_address_that_is_none_is_refused_in_words(listen):
    with pytest.raises(ListenError):
        async with serve([], ServerSettings(lame_duck_s=0, listen=listen, allow_remote_development=True)):
            pass


async def test_a_port_in_use_is_refused_in_words(probe):
    with pytest.raises(ListenError, match="another process has it"):
        async with serve([], ServerSettings(lame_duck_s=0, listen=probe.host.address)):
            pass


async def test_nothing_to_listen_on_is_refused():
    with pytest.raises(ListenError, match="nothing to listen on"):
        async with serve([], ServerSettings(lame_duck_s=0, listen="")):
            pass


async def test_a_socket_file_left_by_a_killed_process_is_replaced(serving, tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(str(path))
    async with serving(ServerSettings(lame_duck_s=0, listen="", uds=str(path))) as probe:
        assert await probe.call("Unary") == ["hello"]
        assert oct(path.stat().st_mode & 0o777) == "0o600"


async def test_a_socket_of_a_live_process_is_left_alone(serving, tmp_path):
    settings = ServerSettings(lame_duck_s=0, listen="", uds=str(tmp_path / "s"))
    async with serving(settings) as probe:
        with pytest.raises(ListenError, match="another process has it"):
            async with serve([], settings):
                pass
        assert await probe.call("Unary") == ["hello"]


async def test_a_socket_path_that_is_too_long_is_refused_in_words(tmp_path):
    with pytest.raises(ListenError, match="longer than"):
        async with serve([], ServerSettings(lame_duck_s=0, listen="", uds=str(tmp_path / ("x" * 120)))):
            pass


async def test_two_mounts_of_one_name_are_refused(probe):
    with pytest.raises(ValueError, match="same name"):
        async with serve([probe.mount(), probe.mount()], LOCAL):
            pass


async def test_reflection_lists_every_service(probe):
    stub = reflection_pb2_grpc.ServerReflectionStub(probe.channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    answer = await call.read()
    assert {service.name for service in answer.list_services_response.service} == {
        "grpc.channelz.v1.Channelz",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "janus.common.v1.StatusService",
        "janus.probe.v1.ProbeService",
    }


async def test_channelz_tells_about_the_servers(probe):
    stub = channelz_pb2_grpc.ChannelzStub(probe.channel)
    answer = await stub.GetServers(channelz_pb2.GetServersRequest())
    assert len(answer.server) >= 1


async def test_reflection_and_channelz_can_be_off(serving, refusal):
    settings = ServerSettings(lame_duck_s=0, listen="127.0.0.1:0", reflection=False, channelz=False)
    async with serving(settings) as probe:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channelz_pb2_grpc.ChannelzStub(probe.channel).GetServers(channelz_pb2.GetServersRequest())
        assert refusal(raised.value).code is grpc.StatusCode.UNIMPLEMENTED
        stub = reflection_pb2_grpc.ServerReflectionStub(probe.channel)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.ServerReflectionInfo(iter([])).read()


async def test_garbage_to_grpcs_own_services_is_typed_too(probe, refusal):
    check = probe.channel.unary_unary("/grpc.health.v1.Health/Check", None, None)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await check(b"\xff\xff")
    assert refusal(raised.value).reason == "REQUEST_UNDECODABLE"


class Stopping:
    """A probe whose host is told to stop while a call is in the middle of its work."""

    def __init__(self, settings, **mount):
        self.started, self.release = asyncio.Event(), asyncio.Event()
        self.settings, self.mount = settings, mount
        self.is_serving, self.leave = asyncio.Event(), asyncio.Event()

    async def run(self, serving):
        async def act(text):
            self.started.set()
            await self.release.wait()
            return text

        async with serving(self.settings, mount=self.mount) as self.probe:
            self.probe.act = act
            self.is_serving.set()
            await self.leave.wait()


@pytest.mark.parametrize("shape", ["Unary", "ServerStream", "ClientStream", "Bidi"])
async def test_a_call_under_way_ends_well_when_connections_are_told_to_go(serving, shape, eventually):
    stopping = Stopping(LOCAL)
    run = asyncio.create_task(stopping.run(serving))
    await stopping.is_serving.wait()
    probe = stopping.probe
    async with grpc.aio.insecure_channel(probe.host.address) as client:
        call = asyncio.create_task(probe.call(shape, channel=client))
        await stopping.started.wait()
        stopping.leave.set()
        await eventually(lambda: probe.host.monitor.is_draining)
        stopping.release.set()
        assert await call == ["hello"]
    await run


@pytest.mark.parametrize("shape", ["Unary", "ServerStream", "ClientStream", "Bidi"])
async def test_a_new_call_to_a_draining_server_is_told_when_to_try_again(serving, shape, eventually, refusal):
    stopping = Stopping(ServerSettings(listen="127.0.0.1:0", lame_duck_s=60, drain_s=60))
    run = asyncio.create_task(stopping.run(serving))
    await stopping.is_serving.wait()
    probe = stopping.probe
    async with grpc.aio.insecure_channel(probe.host.address) as client:
        call = asyncio.create_task(probe.call(shape, channel=client))
        await stopping.started.wait()
        stopping.leave.set()
        await eventually(lambda: probe.host.monitor.is_draining)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await probe.call(shape, channel=client)
        refused = refusal(raised.value)
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert int(refused.trailers["grpc-retry-pushback-ms"]) > 0
        stopping.release.set()
        assert await call == ["hello"]
    probe.host.stop()
    await asyncio.wait_for(run, 10)


async def test_callers_that_do_not_wait_are_told_of_the_drain_until_their_connections_go(serving, eventually, refusal):
    """gRPC itself answers a call that comes while it closes a connection, with CANCELLED and no reason."""
    stopping = Stopping(ServerSettings(listen="127.0.0.1:0", lame_duck_s=0.4, drain_s=60))
    run = asyncio.create_task(stopping.run(serving))
    await stopping.is_serving.wait()
    probe = stopping.probe
    refused, told = [], []

    async def quickly(text):
        return text

    async def calls(number):
        options = [("grpc.use_local_subchannel_pool", 1), ("probe", number)]
        async with grpc.aio.insecure_channel(probe.host.address, options=options) as client:
            while True:
                try:
                    await probe.call("Unary", "quick", channel=client)
                except grpc.aio.AioRpcError as error:
                    refused.append(error.code())
                    if "grpc-status-details-bin" not in dict(error.trailing_metadata() or ()):
                        return  # there is no connection any more
                    told.append(refusal(error).reason)

    async with grpc.aio.insecure_channel(probe.host.address) as client:
        call = asyncio.create_task(probe.call("ServerStream", channel=client))
        await stopping.started.wait()
        probe.act = quickly
        calling = [asyncio.create_task(calls(number)) for number in range(8)]
        await asyncio.sleep(0.1)
        stopping.leave.set()
        await asyncio.gather(*calling)
        stopping.release.set()
        assert await call == ["hello"]
    await run
    assert len(told) > 8
    assert set(told) == {"DRAINING"}
    assert set(refused) == {grpc.StatusCode.UNAVAILABLE}


async def test_a_health_watch_hears_of_the_drain_and_does_not_hold_it_up(serving):
    stopping = Stopping(ServerSettings(lame_duck_s=0, listen="127.0.0.1:0", drain_s=60))
    run = asyncio.create_task(stopping.run(serving))
    await stopping.is_serving.wait()
    async with grpc.aio.insecure_channel(stopping.probe.host.address) as client:
        watch = health_pb2_grpc.HealthStub(client).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(client).ServerReflectionInfo()
        await reflection.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        await reflection.read()
        stopping.leave.set()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await asyncio.wait_for(run, 10)
        reflection.cancel()


async def test_calls_still_reach_the_other_services_of_the_process_while_draining(serving, tmp_path, eventually):
    """A turn that is being finished has yet to store its answer."""
    settings = ServerSettings(lame_duck_s=0, listen="127.0.0.1:0", uds=str(tmp_path / "s"), drain_s=5)
    started, release = asyncio.Event(), asyncio.Event()
    left = asyncio.Event()
    running = asyncio.Event()
    shared = {}

    async def serve_until_left():
        async with serving(settings) as probe:
            shared["probe"] = probe
            running.set()
            await left.wait()

    run = asyncio.create_task(serve_until_left())
    await running.wait()
    probe = shared["probe"]
    async with connect(probe.host.uds) as inside, grpc.aio.insecure_channel(probe.host.address) as client:

        async def act(text):
            if text == "inner":
                return "stored"
            started.set()
            await release.wait()
            return (await probe.call("Unary", "inner", channel=inside))[0]

        probe.act = act
        call = asyncio.create_task(probe.call("ServerStream", "outer", channel=client))
        await started.wait()
        left.set()
        await eventually(lambda: probe.host.monitor.is_draining)
        release.set()
        assert await call == ["stored"]
    await run


async def test_a_client_that_retries_loses_no_call_while_a_replica_is_replaced(serving, eventually):
    policy = {
        "maxAttempts": 5,
        "initialBackoff": "0.01s",
        "maxBackoff": "0.1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    config = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": policy}]})
    async with serving(ServerSettings(listen="127.0.0.1:0", reuse_port=True)) as keeps_the_port:
        address = keeps_the_port.host.address
    settings = ServerSettings(listen=address, reuse_port=True, lame_duck_s=0.1, drain_s=5)
    replaced = asyncio.Event()
    answers = 0

    async def calls(probe, client):
        nonlocal answers
        while not replaced.is_set():
            answers += len(await probe.call("Unary", channel=client))

    first = contextlib.AsyncExitStack()
    probe = await first.enter_async_context(serving(settings))
    async with grpc.aio.insecure_channel(address, options=[("grpc.service_config", config)]) as client:
        calling = [asyncio.create_task(calls(probe, client)) for _ in range(4)]
        async with serving(settings):
            await first.aclose()
            before = answers
            await eventually(lambda: answers > before + 20)
            replaced.set()
            await asyncio.gather(*calling)


@pytest.mark.parametrize("hurried", [False, True])
@pytest.mark.parametrize("shape", ["Unary", "ServerStream", "ClientStream", "Bidi"])
async def test_what_outlasts_the_drain_is_ended_and_told_when_to_try_again(
    serving, shape, hurried, eventually, refusal
):
    stopping = Stopping(ServerSettings(lame_duck_s=0, listen="127.0.0.1:0", drain_s=3600 if hurried else 0.05))
    run = asyncio.create_task(stopping.run(serving))
    await stopping.is_serving.wait()
    host = stopping.probe.host
    async with grpc.aio.insecure_channel(host.address) as client:
        call = asyncio.create_task(stopping.probe.call(shape, channel=client))
        await stopping.started.wait()
        stopping.leave.set()
        await eventually(lambda: host.monitor.is_draining)
        if hurried:
            host.stop()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call
    ended = refusal(raised.value)
    assert (ended.code, ended.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert int(ended.trailers["grpc-retry-pushback-ms"]) > 0
    await asyncio.wait_for(run, 10)
    assert stopping.probe.closed.is_set()


async def test_a_call_that_does_not_let_go_is_cut_all_the_same(serving):
    stopping = Stopping(ServerSettings(lame_duck_s=0, listen="127.0.0.1:0", drain_s=0.05))
    run = asyncio.create_task(stopping.run(serving))
    await stopping.is_serving.wait()

    async def deaf(text):
        stopping.started.set()
        while not stopping.release.is_set():
            with suppress(asyncio.CancelledError):
                await stopping.release.wait()
        return text

    stopping.probe.act = deaf
    async with grpc.aio.insecure_channel(stopping.probe.host.address) as client:
        call = asyncio.create_task(stopping.probe.call("ServerStream", channel=client))
        await stopping.started.wait()
        stopping.leave.set()
        with pytest.raises(grpc.aio.AioRpcError):
            await asyncio.wait_for(call, 10)
        stopping.release.set()
    await asyncio.wait_for(run, 10)


async def test_asked_a_second_time_the_host_waits_for_nobody(serving, eventually):
    stopping = Stopping(ServerSettings(lame_duck_s=0, listen="127.0.0.1:0", drain_s=3600))
    run = asyncio.create_task(stopping.run(serving))
    await stopping.is_serving.wait()
    host = stopping.probe.host
    async with grpc.aio.insecure_channel(host.address) as client:
        call = asyncio.create_task(stopping.probe.call("Unary", channel=client))
        await stopping.started.wait()
        stopping.leave.set()
        await eventually(lambda: host.monitor.is_draining)
        host.stop()
        await asyncio.wait_for(run, 10)
        with suppress(grpc.aio.AioRpcError):
            await call


async def test_the_order_of_the_end(serving):
    order = []
    running = asyncio.Event()

    async def background():
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            order.append("background cancelled")

    async def drain():
        order.append("draining" if shared["probe"].host.monitor.is_draining else "too early")

    shared = {}
    mount = {"background": (("loop", background),), "drain": drain}
    async with serving(mount=mount) as probe:
        shared["probe"] = probe
        await running.wait()
    assert order == ["draining", "background cancelled"]


async def test_a_drain_that_fails_or_hangs_does_not_keep_the_process(serving, logs):
    async def hang():
        await asyncio.Event().wait()

    async def fail():
        raise ValueError("cannot drain")

    for drain, event in ((hang, "drain_timed_out"), (fail, "drain_failed")):
        settings = ServerSettings(lame_duck_s=0, listen="127.0.0.1:0", drain_s=0.05)
        async with serving(settings, mount={"drain": drain}):
            pass
        assert len(logs.named(event)) == 1


async def test_a_background_task_that_fails_is_started_again(serving, monkeypatch, logs):
    monkeypatch.setattr("janus_kit.lifecycle._FIRST_BACKOFF_S", 0.0)
    runs = 0
    well = asyncio.Event()

    async def background():
        nonlocal runs
        runs += 1
        if runs < 3:
            raise ValueError("not yet")
        well.set()

    async with serving(mount={"background": (("loop", background),)}):
        await asyncio.wait_for(well.wait(), 5)
    assert runs == 3
    assert [line["task"] for line in logs.named("background_task_failed")] == ["loop", "loop"]


async def test_a_background_task_that_fails_when_it_is_told_to_end_does_not_begin_again(serving, logs):
    runs = 0

    async def background():
        nonlocal runs
        runs += 1
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("cannot clean up")

    async with asyncio.timeout(5), serving(mount={"background": (("loop", background),)}):
        await asyncio.sleep(0)
    assert runs == 1
    assert not logs.named("background_task_failed")


async def test_no_task_is_left_behind(serving, eventually):
    before = asyncio.all_tasks()
    async with serving() as probe:
        for shape in ("Unary", "ServerStream", "ClientStream", "Bidi"):
            await probe.call(shape)
    await eventually(lambda: asyncio.all_tasks() <= before)


async def test_many_starts_and_stops_leave_no_socket_open(serving, eventually):
    async def once():
        async with serving() as probe:
            await probe.call("Unary")

    for _ in range(3):
        await once()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await once()
    await eventually(lambda: len(os.listdir("/proc/self/fd")) <= before + 2)
