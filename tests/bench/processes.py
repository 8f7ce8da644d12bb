"""The processes that `make bench` measures and measures with."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from janus_app.embedded import read_state

SERVICE = "janus.inference.v1.InferenceService"
ROOT = Path(__file__).parents[2]
START_S = 90.0


@dataclass(frozen=True)
class Measured:
    """A process whose own time and memory count; what it started beside it does not."""

    address: str
    pid: int
    postgres_url: str = ""

    def cpu_s(self) -> float:
        """CPU seconds of all its threads, user and system."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def rss(self) -> int:
        """Resident bytes."""
        return int(psutil.Process(self.pid).memory_info().rss)


@contextmanager
def provider() -> Iterator[Measured]:
    """The fake provider; its address is `127.0.0.1:port`."""
    with _announced("tests.fakes.bench_provider") as process:
        yield process


@contextmanager
def bare_chain(upstream: str) -> Iterator[Measured]:
    """The bare chain in front of the provider at ``upstream``."""
    with _announced("tests.bench.bare_chain", f"http://{upstream}/v1") as process:
        yield process


@contextmanager
def bare_run(postgres_url: str, redis_url: str, upstream: str) -> Iterator[Measured]:
    """The bare run in front of the model and the memory at ``upstream``."""
    with _announced("tests.bench.bare_run", postgres_url, redis_url, upstream) as process:
        yield process


@contextmanager
def services() -> Iterator[Measured]:
    """Inference and memory that cost almost nothing."""
    with _announced("tests.fakes.bench_services") as process:
        yield process


@contextmanager
def _announced(*command: str) -> Iterator[Measured]:
    """A module that prints its port and ends with its stdin."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdin
    assert process.stdout
    try:
        yield Measured(f"127.0.0.1:{int(process.stdout.readline())}", process.pid)
    finally:
        process.stdin.close()
        process.wait(10)


@contextmanager
def janus(folder: Path, upstream: str) -> Iterator[Measured]:
    """`janus serve --only inference` in front of the provider at ``upstream``, as anybody would start it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "janus.yaml"
    config.write_text(
        "inference:\n"
        "  providers:\n"
        f"    bench: {{kind: openai_compatible, base_url: 'http://{upstream}/v1', api_key: sk-bench}}\n"
    )
    address = f"127.0.0.1:{free_port()}"
    command = ["-m", "janus_app", "serve", "--only", "inference", "--listen", address]
    command += ["--data", str(folder / "data"), "--config", str(config)]
    with started([sys.executable, *command], folder / "janus.log") as process:
        wait_until(lambda: _is_serving(address), process, folder / "janus.log")
        state = read_state(folder / "data")
        assert state
        yield Measured(address, process.pid, state.postgres_url or "")


@contextmanager
def started(command: list[str], log: Path, **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process without anybody's keys in its environment; ended in order, what it wrote is in ``log``."""
    clean = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=clean | environment, cwd=ROOT
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(ready: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait for a process to be ready; says what it wrote when it ends instead."""
    until = time.perf_counter() + START_S
    while time.perf_counter() < until and process.poll() is None:
        if ready():
            return
        time.sleep(0.05)
    raise SystemExit(f"{process.args!r} did not start:\n{log.read_text()[-2000:]}")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_serving(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=SERVICE), timeout=5
            )
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
