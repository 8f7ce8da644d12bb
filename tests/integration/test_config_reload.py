"""A real process whose settings change while it answers: by its file, by its secrets, by SIGHUP."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from tests.fakes.providers import openai_wire
from tests.fakes.providers.http_server import WireServer, serving
from tests.fakes.providers.inference_service import Refusal, prompt
from tests.system.driver import Server, eventually, server

from janus_api.inference.v1 import event_pb2
from janus_api.inference.v1 import inference_service_pb2 as pb
from janus_api.inference.v1 import inference_service_pb2_grpc as rpc
from janus_app.client import connect

SECRET = "sk-never-to-be-seen"
WAIT_S = 60.0


def settings(target: str, **inference: Any) -> str:
    """A file in which the alias `main` means that target; `first` and `second` are rehearsals."""
    section = {
        "providers": {"first": {"kind": "scripted"}, "second": {"kind": "scripted"}},
        "aliases": {"main": target},
        "scripted_pace_ms": 0,
    }
    return yaml.safe_dump({"inference": section | inference})


class Process:
    """`python -m janus_inference` with a settings file."""

    def __init__(self, process: asyncio.subprocess.Process, file: Path) -> None:
        self.process = process
        self.file = file
        self.log: list[dict[str, Any]] = []
        self.stub: rpc.InferenceServiceStub

    async def told(self, event: str) -> dict[str, Any]:
        """The next line of the log with that event."""
        assert self.process.stderr is not None
        async with asyncio.timeout(WAIT_S):
            while line := await self.process.stderr.readline():
                self.log.append(json.loads(line))
                if self.log[-1]["event"] == event:
                    return self.log[-1]
        raise AssertionError(f"it ended without {event}: {self.log}")

    def hang_up(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def replace(self, content: str) -> None:
        """Replace the file in one step, as editors do."""
        new = self.file.with_suffix(".new")
        new.write_text(content)
        os.replace(new, self.file)

    async def answer(self, text: str = "hello", model: str = "main") -> pb.GenerateResponse:
        asked = pb.GenerateRequest(prompt=prompt(text, model=model))
        answered: pb.GenerateResponse = await self.stub.Generate(asked, timeout=WAIT_S)
        return answered

    def stream(self, text: str, model: str = "main") -> Any:
        return self.stub.StreamGenerate(pb.StreamGenerateRequest(prompt=prompt(text, model=model)), timeout=WAIT_S)


@asynccontextmanager
async def running(folder: Path, content: str, postgres_url: str, redis_url: str) -> AsyncIterator[Process]:
    file = folder / "janus.yaml"
    file.write_text(content)
    secrets = folder / "secrets"
    secrets.mkdir()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("JANUS_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "janus_inference",
        env=inherited
        | {
            "JANUS_CONFIG": str(file),
            "JANUS_SECRETS_DIR": str(secrets),
            "JANUS_SERVER__LISTEN": "127.0.0.1:0",
            "JANUS_SERVER__LAME_DUCK_S": "0",
            "JANUS_POSTGRES_URL": postgres_url,
            "JANUS_REDIS_URL": redis_url,
        },
        stderr=subprocess.PIPE,
    )
    served = Process(process, file)
    try:
        address = (await served.told("serving"))["address"]
        async with grpc.aio.insecure_channel(address) as channel:
            served.stub = rpc.InferenceServiceStub(channel)
            yield served
    finally:
        if process.returncode is None:
            process.terminate()
        _, rest = await asyncio.wait_for(process.communicate(), WAIT_S)
        assert SECRET not in json.dumps(served.log) + rest.decode()
    assert process.returncode == 0


@pytest.fixture
async def process(tmp_path: Path, postgres_url: str, redis_url: str) -> AsyncIterator[Process]:
    async with running(tmp_path, settings("first/rehearsal"), postgres_url, redis_url) as served:
        yield served


@pytest.fixture
async def wire() -> AsyncIterator[WireServer]:
    async with serving(openai_wire.application) as served:
        yield served


async def test_an_alias_that_is_changed_in_the_file_leads_elsewhere_without_a_lost_call(process: Process) -> None:
    assert (await process.answer()).provider == "first"
    process.replace(settings("second/rehearsal"))
    answered = ["first"]
    async with asyncio.timeout(WAIT_S):
        while answered[-1] != "second":  # any call that fails ends the test
            answered += [each.provider for each in await asyncio.gather(*(process.answer() for _ in range(4)))]
    assert set(answered) == {"first", "second"}
    assert [(await process.answer()).provider for _ in range(8)] == ["second"] * 8
    applied = await process.told("configuration_applied")
    assert (applied["reason"], applied["changed"]) == ("file", ["inference.aliases.main.targets"])


async def test_sighup_applies_the_file_at_once(process: Process) -> None:
    process.replace(settings("second/rehearsal"))
    process.hang_up()
    assert (await process.told("configuration_applied"))["reason"] == "signal"
    assert (await process.answer()).provider == "second"


async def test_a_file_that_is_wrong_changes_nothing_and_is_told_in_words(process: Process) -> None:
    process.replace(settings("second/gone", openai_api_key=[SECRET]))
    process.hang_up()
    problems = (await process.told("configuration_refused"))["problems"]
    assert any("inference.openai_api_key: Input should be a valid string" in problem for problem in problems)
    assert (await process.answer()).provider == "first"
    process.file.write_text(f"inference: {{openai_api_key: {SECRET}, aliases: [")
    assert "not valid YAML" in (await process.told("configuration_refused"))["problems"][0]
    assert (await process.answer()).provider == "first"
    process.replace(settings("second/rehearsal"))
    await process.told("configuration_applied")
    assert (await process.answer()).provider == "second"


async def test_settings_that_nothing_can_be_made_from_are_refused_whole(process: Process) -> None:
    providers = {"odd": {"kind": "openai_compatible", "base_url": "http://127.0.0.1:9/v1", "profile": "no-such-server"}}
    process.replace(settings("second/rehearsal", providers=providers | {"second": {"kind": "scripted"}}))
    process.hang_up()
    (problem,) = (await process.told("configuration_refused"))["problems"]
    assert problem.startswith("inference.providers.odd.profile: ")
    assert (await process.answer()).provider == "first"
    process.replace(settings("second/rehearsal"))
    process.hang_up()
    await process.told("configuration_applied")
    assert (await process.answer()).provider == "second"


async def test_a_stream_goes_on_with_the_settings_that_it_began_with(process: Process) -> None:
    stream = aiter(process.stream("/pace 25\n/long 80"))
    first = (await anext(stream)).event.started
    assert first.provider == "first"
    content = yaml.safe_load(settings("second/rehearsal"))
    del content["inference"]["providers"]["first"]
    process.replace(yaml.safe_dump(content))
    process.hang_up()
    await process.told("configuration_applied")
    assert (await process.answer()).provider == "second"
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await process.answer(model="first/rehearsal")
    assert Refusal.of(raised.value).reason == "MODEL_NOT_FOUND"
    events = [response.event async for response in stream]
    assert events[-1].finished.reason == event_pb2.FINISH_REASON_STOP
    assert "word80" in "".join(event.text_delta.text for event in events)


async def test_a_provider_that_is_removed_is_closed_after_its_last_stream(process: Process, wire: WireServer) -> None:
    compatible = {"kind": "openai_compatible", "base_url": f"{wire.url}/v1"}
    process.replace(settings("compatible/fake;tokens=60;pace=25", providers={"compatible": compatible}))
    process.hang_up()
    await process.told("configuration_applied")
    stream = aiter(process.stream("hello"))
    events = [(await anext(stream)).event]
    process.replace(settings("second/rehearsal"))
    process.hang_up()
    await process.told("configuration_applied")
    assert wire.open
    events += [response.event async for response in stream]
    assert events[-1].finished.reason == event_pb2.FINISH_REASON_STOP
    assert "wörd59" in "".join(event.text_delta.text for event in events)
    async with asyncio.timeout(WAIT_S):
        await asyncio.gather(*wire.open)


async def test_models_that_are_listed_follow_the_settings(process: Process) -> None:
    process.replace(settings("first/rehearsal", aliases={"other": "second/rehearsal"}))
    process.hang_up()
    await process.told("configuration_applied")
    names = [model.name for model in (await process.stub.ListModels(pb.ListModelsRequest())).models]
    assert "other" in names
    assert "main" not in names


async def test_a_provider_whose_settings_stay_keeps_its_connection(process: Process, wire: WireServer) -> None:
    compatible = {"kind": "openai_compatible", "base_url": f"{wire.url}/v1", "models": ["fake"]}
    providers = {"compatible": compatible, "first": {"kind": "scripted"}}
    process.replace(settings("compatible/fake", providers=providers))
    process.hang_up()
    await process.told("configuration_applied")
    await process.answer()
    opened = wire.connections
    process.replace(settings("compatible/fake", providers=providers, aliases={"other": "compatible/fake"}))
    process.hang_up()
    await process.told("configuration_applied")
    await process.answer(model="other")
    assert wire.connections == opened
    process.replace(settings("first/rehearsal"))
    process.hang_up()
    await process.told("configuration_applied")
    async with asyncio.timeout(WAIT_S):
        await asyncio.gather(*wire.open)  # the provider is gone, and its connections with it


async def test_a_key_that_is_rotated_in_the_secrets_directory_is_used(process: Process, wire: WireServer) -> None:
    name = "janus_inference__providers__compatible__api_key"
    secret = process.file.parent / "secrets" / name
    secret.write_text("sk-old")
    compatible = {"kind": "openai_compatible", "base_url": f"{wire.url}/v1", "models": ["fake"]}
    process.replace(settings("compatible/fake", providers={"compatible": compatible}))
    process.hang_up()
    await process.told("configuration_applied")
    await process.answer()
    assert wire.exchanges[-1].request.headers["authorization"] == "Bearer sk-old"
    secret.write_text(SECRET)
    applied = await process.told("configuration_applied")
    assert applied["changed"] == ["inference.providers.compatible.api_key"]
    await process.answer()
    assert wire.exchanges[-1].request.headers["authorization"] == f"Bearer {SECRET}"


async def test_what_needs_a_restart_is_named_and_the_rest_takes_effect(process: Process) -> None:
    content = yaml.safe_load(settings("second/rehearsal"))
    content["server"] = {"drain_s": 3}
    content["redis"] = {"pool_max": 7}
    process.replace(yaml.safe_dump(content))
    process.hang_up()
    warning = await process.told("configuration_needs_restart")
    assert sorted(warning["changed"]) == ["redis.pool_max", "server.drain_s"]
    assert (await process.answer()).provider == "second"


def test_a_whole_mesh_follows_its_file_and_survives_sighup(tmp_path: Path) -> None:
    file = tmp_path / "janus.yaml"
    file.write_text(settings("first/rehearsal"))
    with server(environment={"JANUS_CONFIG": str(file)}) as served, connect(served.data) as mesh:

        def provider() -> str:
            asked = pb.GenerateRequest(prompt=prompt("hello", model="main"))
            return str(mesh.inference.Generate(asked, timeout=WAIT_S).provider)

        assert provider() == "first"
        file.write_text(settings("second/rehearsal"))
        eventually(lambda: provider() == "second", WAIT_S)
        file.write_text("inference: 1")
        _hang_up(served)
        eventually(lambda: "configuration_refused" in served.log.read_text(), WAIT_S)
        assert provider() == "second"


def _hang_up(served: Server) -> None:
    assert served.process is not None
    served.process.send_signal(signal.SIGHUP)
