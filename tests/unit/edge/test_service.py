"""Models, health, metrics and what every path has in common."""

import asyncio
import socket
from typing import Any

import httpx2
import pytest

from janus_api.inference.v1 import model_pb2
from janus_edge.app import server
from janus_edge.settings import EdgeSettings
from janus_kit.configuration import SettingsError, load
from janus_kit.transport import ListenError


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_all_pages_of_models_are_listed(edge: httpx2.AsyncClient, inference: Any):
    names = ["fast", "openai/a", "openai/b", "scripted/echo", "smart"]
    inference.models = [
        model_pb2.Model(name=name, provider=name.partition("/")[0] if "/" in name else "") for name in names
    ]
    body = (await edge.get("/v1/models")).json()
    assert body["object"] == "list"
    assert [model["id"] for model in body["data"]] == names
    assert body["data"][0] == {"id": "fast", "object": "model", "created": 0, "owned_by": "janus"}
    assert body["data"][1]["owned_by"] == "openai"


@pytest.mark.parametrize("path", ["/v1/models/openai/a", "/v1/models/openai%2Fa"])
async def test_one_model_is_found_by_its_whole_name(edge: httpx2.AsyncClient, inference: Any, path: str):
    inference.models = [model_pb2.Model(name="openai/a", provider="openai")]
    assert (await edge.get(path)).json()["id"] == "openai/a"


async def test_an_unknown_model_is_not_found(edge: httpx2.AsyncClient):
    response = await edge.get("/v1/models/nope")
    assert response.status_code == 404
    assert response.json()["error"] == {
        "message": "model 'nope' was not found",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/v1/nothing", 404, "unknown_url"), ("GET", "/v1/chat/completions", 405, "method_not_allowed")],
)
async def test_a_wrong_path_is_answered_in_the_same_shape(
    edge: httpx2.AsyncClient, method: str, path: str, status: int, code: str
):
    response = await edge.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code


async def test_ready_means_that_the_mesh_says_so(edge: httpx2.AsyncClient):
    response = await edge.get("/readyz")
    assert response.status_code == 200
    body = response.json()
    assert body["status"] == "ready"
    services = {service["service"]: service for service in body["targets"][0]["services"]}
    parts = services["janus.inference.v1.InferenceService"]["parts"]
    assert {part["name"]: part["available"] for part in parts} == {"postgres": True, "redis": True}


async def status_with(edge: httpx2.AsyncClient, status: str) -> httpx2.Response:
    """Readiness once the mesh has noticed; its checks are seconds apart."""
    async with asyncio.timeout(15):
        while (response := await edge.get("/readyz")).json()["status"] != status:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return response


async def test_a_part_that_is_not_required_makes_it_degraded(edge: httpx2.AsyncClient, parts: Any):
    parts.away.add("redis")
    response = await status_with(edge, "degraded")
    assert response.status_code == 200
    found = [part for part in response.json()["targets"][0]["services"][0]["parts"] if part["name"] == "redis"]
    assert "answers come without it" in found[0]["detail"]


async def test_a_required_part_makes_it_unready_until_it_is_back(edge: httpx2.AsyncClient, parts: Any):
    parts.away.add("postgres")
    assert (await status_with(edge, "not_ready")).status_code == 503
    parts.away.clear()
    assert (await status_with(edge, "ready")).status_code == 200


async def test_without_a_mesh_it_lives_but_is_not_ready_and_says_who_is_away(settings: EdgeSettings):
    target = f"127.0.0.1:{unused_port()}"
    async with (
        server(settings, target) as running,
        httpx2.AsyncClient(base_url=running.url, trust_env=False, verify=False) as client,
    ):
        assert (await client.get("/livez")).status_code == 200
        ready = await client.get("/readyz")
        models = await client.get("/v1/models")
    assert ready.status_code == 503
    assert ready.json()["targets"][0]["detail"] == "the process is not available"
    assert models.status_code == 503
    assert models.json()["error"]["code"] == "dependency_unavailable"
    assert "retry-after" in models.headers


async def test_what_is_only_reported_makes_it_degraded_at_most(target: str, settings: EdgeSettings):
    other = f"127.0.0.1:{unused_port()}"
    settings = settings.model_copy(update={"also_report": (other,)})
    async with (
        server(settings, target) as running,
        httpx2.AsyncClient(base_url=running.url, trust_env=False, verify=False) as client,
    ):
        response = await client.get("/readyz")
    assert response.status_code == 200
    body = response.json()
    assert body["status"] == "degraded"
    assert [(each["target"], each["required"], each["status"]) for each in body["targets"]] == [
        (target, True, "ready"),
        (other, False, "not_ready"),
    ]


async def test_metrics_name_routes_and_never_paths(edge: httpx2.AsyncClient):
    await edge.get("/v1/models/secret-name")
    await edge.get("/private/path")
    text = (await edge.get("/metrics")).text
    assert 'route="/v1/models/{model:path}",status="404"' in text
    assert 'route="unmatched",status="404"' in text
    assert "secret-name" not in text
    assert "private" not in text


async def test_a_request_id_that_is_none_is_replaced(edge: httpx2.AsyncClient):
    response = await edge.get("/livez", headers={"x-request-id": "a b\tc"})
    assert response.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", ""])
async def test_a_name_that_a_stranger_points_here_is_not_answered(edge: httpx2.AsyncClient, host: str):
    response = await edge.get("/livez", headers={"host": host})
    assert response.status_code == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080"])
async def test_names_of_this_machine_are_answered(edge: httpx2.AsyncClient, host: str):
    assert (await edge.get("/livez", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    ("header", "value"), [("janus-timeout", "soon"), ("janus-timeout", "-1"), ("janus-tenant", "../x")]
)
async def test_a_wrong_header_is_named(edge: httpx2.AsyncClient, header: str, value: str):
    response = await edge.get("/v1/models", headers={header: value})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == header


async def test_openapi_describes_the_requests_and_loads_nothing_from_elsewhere(edge: httpx2.AsyncClient):
    document = (await edge.get("/openapi.json")).json()
    assert set(document["paths"]) == {
        "/livez",
        "/metrics",
        "/readyz",
        "/v1/chat/completions",
        "/v1/models",
        "/v1/models/{model}",
    }
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"]["$ref"] == "#/components/schemas/ChatRequest"
    text = str(document)
    for name in document["components"]["schemas"]:
        assert f"#/components/schemas/{name}'" in text, f"{name} is not used"
    for page in ("/docs", "/redoc"):
        assert (await edge.get(page)).status_code == 404


async def test_a_taken_address_is_said_in_plain_words(target: str):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ListenError, match=listen):
            async with server(EdgeSettings(listen=listen), target):
                pass


async def test_a_request_in_flight_is_finished_before_the_server_stops(
    target: str, settings: EdgeSettings, inference: Any, answering: Any, playing: Any
):
    started, delta, finished = answering("half")
    go_on = asyncio.Event()
    inference.events = playing(started, delta, go_on, finished)
    settings = settings.model_copy(update={"drain_s": 30})
    ask = {"model": "x", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    async with httpx2.AsyncClient(trust_env=False, verify=False) as client:
        leave = asyncio.Event()
        stopped = asyncio.Event()
        address: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            async with server(settings, target) as running:
                address.set_result(running.url)
                await leave.wait()
            stopped.set()

        running = asyncio.create_task(run())
        async with client.stream("POST", f"{await address}/v1/chat/completions", json=ask) as response:
            stream = response.aiter_lines()
            await anext(stream)
            leave.set()
            await refused(await address)
            assert not stopped.is_set()
            go_on.set()
            rest = [line async for line in stream if line]
        await running
    assert rest[-1] == "data: [DONE]"


async def refused(url: str) -> None:
    """Return once new connections are refused, which a server does first when it drains."""
    async with asyncio.timeout(10):
        while True:
            async with httpx2.AsyncClient(trust_env=False, verify=False) as client:
                try:
                    await client.get(f"{url}/livez")
                except httpx2.ConnectError:
                    return
                except httpx2.TransportError:
                    continue  # accepted by the kernel just before the listener closed, and hung up on


@pytest.mark.parametrize("listen", ["0.0.0.0:8080", "[::]:8080", "192.168.1.5:8080", "myhost:8080"])
def test_an_open_address_needs_consent(listen: str):
    with pytest.raises(SettingsError, match="is not loopback"):
        load({"edge": EdgeSettings}, overrides={"edge.listen": listen})
    consenting = {"edge.listen": listen, "edge.allow_remote_development": True}
    assert load({"edge": EdgeSettings}, overrides=consenting)["edge"].listen == listen


@pytest.mark.parametrize("listen", ["127.0.0.1", ":8080", "127.0.0.1:http", "127.0.0.1:70000", ""])
def test_an_address_that_is_none_is_refused(listen: str):
    with pytest.raises(SettingsError, match="host:port"):
        load({"edge": EdgeSettings}, overrides={"edge.listen": listen})


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:8080", "localhost:8080", "127.8.8.8:1"])
def test_loopback_needs_none(listen: str):
    assert EdgeSettings(listen=listen).listen == listen
