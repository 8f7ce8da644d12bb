"""Health follows the real parts, recovers by itself, and says what changed."""

import asyncio
from dataclasses import dataclass

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import REGISTRY

from janus_api.common.v1 import status_service_pb2 as pb
from janus_api.common.v1 import status_service_pb2_grpc as rpc
from janus_kit import health
from janus_kit.errors import Unavailable
from janus_kit.mount import Mount, Part, Parts
from janus_kit.settings import ServerSettings

SERVICE = "janus.probe.v1.ProbeService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@dataclass
class Dependency:
    """Something that can be away."""

    name: str
    required: bool
    is_away: bool = False
    error: Exception | None = None

    @property
    def part(self):
        return Part(self.name, self.required, self._check, when_away=f"works without {self.name}")

    async def _check(self):
        if self.is_away:
            raise self.error or Unavailable(self.name)


@pytest.fixture
def store():
    return Dependency("postgres", required=True)


@pytest.fixture
def cache():
    return Dependency("redis", required=False)


@pytest.fixture
async def mesh(serving, store, cache, monkeypatch):
    # Every question is answered from a new check, so that no test waits for time to pass.
    monkeypatch.setattr(health, "FRESH_S", -1.0)
    monkeypatch.setattr(health, "AWAY_INTERVAL_S", 0.01)
    settings = ServerSettings(lame_duck_s=0, listen="127.0.0.1:0", health_interval_s=0.01, drain_s=5)
    async with serving(settings, mount={"parts": (store.part, cache.part)}) as probe:
        yield probe


async def check(mesh, service=SERVICE):
    stub = health_pb2_grpc.HealthStub(mesh.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


async def status(mesh):
    answer = await rpc.StatusServiceStub(mesh.channel).GetStatus(pb.GetStatusRequest())
    (service,) = answer.services
    return service


async def test_all_parts_there_means_serving(mesh):
    assert await check(mesh) == SERVING
    assert await check(mesh, "") == SERVING
    service = await status(mesh)
    assert service.service == SERVICE
    assert service.state == pb.SERVICE_STATE_SERVING
    assert [(part.name, part.available, part.required) for part in service.parts] == [
        ("postgres", True, True),
        ("redis", True, False),
    ]


async def test_a_required_part_away_means_not_serving_and_its_return_needs_no_restart(mesh, store):
    store.is_away = True
    assert await check(mesh) == NOT_SERVING
    assert await check(mesh, "") == NOT_SERVING
    service = await status(mesh)
    assert service.state == pb.SERVICE_STATE_NOT_SERVING
    assert service.parts[0].detail == "postgres is not available; works without postgres"
    store.is_away = False
    assert await check(mesh) == SERVING
    assert (await status(mesh)).parts[0].detail == ""


async def test_an_optional_part_away_means_degraded_yet_serving(mesh, cache):
    cache.is_away = True
    assert await check(mesh) == SERVING
    service = await status(mesh)
    assert service.state == pb.SERVICE_STATE_DEGRADED
    assert [part.available for part in service.parts] == [True, False]


async def test_the_detail_shows_nothing_of_an_exception_that_is_not_ours(mesh, store):
    store.is_away, store.error = True, OSError("connect to 10.0.0.1 with password hunter2")
    assert (await status(mesh)).parts[0].detail == "postgres does not answer; works without postgres"


async def test_a_check_that_hangs_counts_as_away(serving, monkeypatch):
    monkeypatch.setattr(health, "CHECK_TIMEOUT_S", 0.01)

    async def hang():
        await asyncio.Event().wait()

    async with serving(mount={"parts": (Part("postgres", True, hang),)}) as probe:
        assert await check(probe) == NOT_SERVING
        assert "did not answer" in (await status(probe)).parts[0].detail


async def test_an_optional_part_that_hangs_does_not_keep_who_asks_whether_it_serves(serving, monkeypatch):
    monkeypatch.setattr(health, "FRESH_S", -1.0)
    hangs = asyncio.Event()

    async def check_cache():
        if hangs.is_set():
            await asyncio.Event().wait()

    async def well():
        pass

    parts = (Part("postgres", True, well), Part("chroma", False, check_cache))
    async with serving(mount={"parts": parts}) as probe:
        monkeypatch.setattr(health, "CHECK_TIMEOUT_S", 3600)
        hangs.set()
        assert await check(probe) == SERVING


async def test_changes_are_logged_once_each(mesh, store, logs):
    store.is_away = True
    await check(mesh)
    await check(mesh)
    store.is_away = False
    await check(mesh)
    assert [(line["part"], line["required"]) for line in logs.named("part_away")] == [("postgres", True)]
    assert [line["part"] for line in logs.named("part_back")] == ["postgres"]
    states = [line["state"] for line in logs.named("service_state") if line["service"] == "probe"]
    assert states == ["not_serving", "serving"]


async def test_watch_tells_every_change_by_itself(mesh, store):
    stub = health_pb2_grpc.HealthStub(mesh.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
    assert (await watch.read()).status == SERVING
    store.is_away = True
    assert (await watch.read()).status == NOT_SERVING
    store.is_away = False
    assert (await watch.read()).status == SERVING
    watch.cancel()


async def test_an_unknown_service_is_not_found_by_check_and_unknown_to_watch(mesh, refusal):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await check(mesh, "janus.nothing.v1.NothingService")
    assert refusal(raised.value).code is grpc.StatusCode.NOT_FOUND
    stub = health_pb2_grpc.HealthStub(mesh.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="janus.nothing.v1.NothingService"))
    assert (await watch.read()).status == UNKNOWN
    watch.cancel()


async def test_a_part_that_asks_about_another_service_of_the_process_does_not_wait_for_itself(serving, monkeypatch):
    """Orchestration asks inference for its health, often through the same server."""
    monkeypatch.setattr(health, "FRESH_S", -1.0)
    running = {}

    async def inner():
        if "probe" in running:
            assert await check(running["probe"], "janus.common.v1.StatusService") == SERVING

    async with serving(mount={"parts": (Part("status", True, inner),)}) as probe:
        running["probe"] = probe
        assert await check(probe, "") == SERVING


async def test_many_questions_at_once_make_one_check():
    checks = 0
    release = asyncio.Event()

    async def counted():
        nonlocal checks
        checks += 1
        await release.wait()

    mount = Mount("probe", lambda server: None, (SERVICE,), (Part("postgres", True, counted),))
    monitor = health.HealthMonitor([mount])
    questions = [asyncio.create_task(monitor.refresh(SERVICE)) for _ in range(20)]
    # One that goes away does not take the others' check with it.
    await asyncio.sleep(0)
    questions[0].cancel()
    release.set()
    await asyncio.gather(*questions[1:])
    assert checks == 1
    assert monitor.state(SERVICE) is health.State.SERVING


async def test_parts_that_change_with_the_settings_are_checked_from_then_on(store, cache):
    parts = [store.part]
    monitor = health.HealthMonitor([Mount("probe", lambda server: None, (SERVICE,), Parts(lambda: parts))])
    await monitor.refresh()
    assert [report.part.name for report in monitor.reports(SERVICE)] == ["postgres"]
    cache.is_away = True
    parts = [store.part, cache.part]
    await monitor.refresh()
    assert monitor.state(SERVICE) is health.State.DEGRADED
    labels = {"service": "probe", "part": "redis"}
    assert REGISTRY.get_sample_value("janus_part_available", labels) == 0
    parts = [store.part]
    await monitor.refresh()
    assert [report.part.name for report in monitor.reports(SERVICE)] == ["postgres"]
    assert monitor.state(SERVICE) is health.State.SERVING
    assert REGISTRY.get_sample_value("janus_part_available", labels) is None


async def test_a_part_whose_settings_changed_is_checked_as_it_is_now(cache):
    successor = Dependency("redis", required=False)
    cache.is_away = True
    parts = [cache.part]
    monitor = health.HealthMonitor([Mount("probe", lambda server: None, (SERVICE,), Parts(lambda: parts))])
    await monitor.refresh()
    parts = [successor.part]
    await monitor.refresh(max_age_s=0)
    assert monitor.state(SERVICE) is health.State.SERVING
