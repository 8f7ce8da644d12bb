"""A service as a process of its own: it starts, obeys signals, and says what is wrong."""

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVICE = """
from contextlib import asynccontextmanager
from janus_kit.mount import Mount
from janus_kit.settings import Settings
from janus_kit.standalone import main

class ProbeSettings(Settings):
    name: str = "probe"

@asynccontextmanager
async def build(reloading):
    print("opened", flush=True)
    yield Mount(reloading.loaded["inference"].name, lambda server: None, ())
    print("closed", flush=True)

main("inference", ProbeSettings, build)
"""


@pytest.fixture
def start(tmp_path):
    started = []

    def run(**environ):
        process = subprocess.Popen(
            [sys.executable, "-c", SERVICE],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "JANUS_SERVER__LISTEN": "", **environ},
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_process_in_order(start, tmp_path, number):
    process = start(JANUS_SERVER__UDS=str(tmp_path / "s"), JANUS_SERVER__LAME_DUCK_S="0")
    while '"event": "serving"' not in (line := process.stderr.readline()):
        assert line
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert out.split() == ["opened", "closed"]
    assert '"event": "stopped"' in err


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        ({"JANUS_INFERENCE__NAEM": "x"}, "inference.naem: unknown key, did you mean 'name'?"),
        ({"JANUS_CONFIG": "/nowhere/janus.yaml"}, "/nowhere/janus.yaml: no such file"),
        ({"JANUS_SERVER__LISTEN": "0.0.0.0:0"}, "development identity"),
        ({}, "nothing to listen on"),
    ],
    ids=["setting", "file", "address", "nothing"],
)
def test_what_is_wrong_is_said_in_words_without_a_stack(start, environ, problem):
    process = start(**environ)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 2
    assert problem in err
    assert "Traceback" not in err


def logged(process, event):
    """The next line of that event."""
    while line := process.stderr.readline():
        found = json.loads(line)
        if found["event"] == event:
            return found
    raise AssertionError(f"it ended without {event}")


def test_sighup_reads_the_settings_again_and_ends_nothing(start, tmp_path):
    file = tmp_path / "janus.yaml"
    file.write_text("inference: {name: probe}")
    process = start(JANUS_SERVER__UDS=str(tmp_path / "s"), JANUS_SERVER__LAME_DUCK_S="0", JANUS_CONFIG=str(file))
    logged(process, "serving")
    process.send_signal(signal.SIGHUP)
    assert logged(process, "configuration_unchanged")["reason"] == "signal"
    file.write_text("inference: {naem: probe}")
    process.send_signal(signal.SIGHUP)
    (problem,) = logged(process, "configuration_refused")["problems"]
    assert problem.startswith("inference.naem: unknown key")
    file.write_text("inference: {name: another}")
    process.send_signal(signal.SIGHUP)
    assert logged(process, "configuration_needs_restart")["changed"] == ["inference.name"]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0


async def test_a_terminal_that_goes_away_leaves_the_server_running(tmp_path):
    # Its later lines have nowhere to go; that must not fail the calls that log them.
    terminal, stderr = pty.openpty()
    own_terminal = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        own_terminal + SERVICE,
        stdin=stderr,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        start_new_session=True,
        env={**os.environ, "JANUS_SERVER__LISTEN": "", "JANUS_SERVER__UDS": f"{tmp_path}/s"},
    )
    os.close(stderr)
    try:
        seen = b""
        while b'"event": "serving"' not in seen:
            piece = os.read(terminal, 65536)
            assert piece, seen
            seen += piece
        # The leader of the terminal's session gets SIGHUP, and writing to it is an error from now on.
        os.close(terminal)
        async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel:
            for _ in range(3):
                answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 60) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
