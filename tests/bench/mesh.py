"""`make bench`: what the all-in-one mesh costs, each figure beside a baseline of the same run.

- cold start: from `janus serve` to the first health SERVING of all services, on a data folder that
  was initialised before; baseline: a Python process that imports grpc and answers nothing;
- resident memory of the mesh's own process with no provider SDK loaded (its Postgres, Valkey and
  Chroma are processes of their own and listed apart); baseline: that same bare process;
- time to first token: Converse (recall, journal, model) against Generate's stream asked directly,
  alternating, with the rehearsal provider at full speed.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from janus_api.content.v1 import message_pb2 as content
from janus_api.inference.v1 import inference_service_pb2 as inference_pb
from janus_api.inference.v1 import request_pb2
from janus_api.orchestration.v1 import agent_pb2, thread_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as orchestration_pb
from janus_app.client import Mesh, connect
from janus_app.embedded import read_state

MODEL = "scripted/rehearsal"
SERVICES = (
    "janus.inference.v1.InferenceService",
    "janus.memory.v1.MemoryService",
    "janus.orchestration.v1.OrchestrationService",
)
WITHOUT_KEYS = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
BARE = "import grpc, sys; print('up', flush=True); sys.stdin.read()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=5, help="cold starts to measure")
    parser.add_argument("--turns", type=int, default=100, help="turns to measure each way")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="janus-bench-") as folder:
        data = Path(folder)
        began = time.perf_counter()
        with served(data):
            first = time.perf_counter() - began
        bare_seconds, bare_bytes = bare_process()
        starts = []
        for _ in range(arguments.starts):
            began = time.perf_counter()
            with served(data):
                starts.append(time.perf_counter() - began)
        with served(data) as process, connect(data) as mesh:
            idle = psutil.Process(process.pid).memory_info().rss
            converse, generate = first_tokens(mesh, arguments.turns)
            busy = psutil.Process(process.pid).memory_info().rss
            servers = {child.name(): child.memory_info().rss for child in psutil.Process(process.pid).children()}

    start = statistics.median(starts)
    print(f"{'':34}{'measured':>12}{'baseline':>12}{'ratio':>8}  aim")
    row("first start, data folder made", f"{first:.2f} s", "", "", "")
    row(
        "cold start to SERVING, median",
        f"{start:.2f} s",
        f"{bare_seconds:.2f} s",
        f"{start / bare_seconds:.1f}",
        "≤ 2 s",
    )
    row("cold start to SERVING, worst", f"{max(starts):.2f} s", "", "", "")
    row("resident memory, idle", mib(idle), mib(bare_bytes), f"{idle / bare_bytes:.1f}", "≤ 200 MB")
    row(
        f"resident memory, {2 * arguments.turns} turns later",
        mib(busy),
        mib(bare_bytes),
        f"{busy / bare_bytes:.1f}",
        "",
    )
    for name, size in sorted(servers.items()):
        row(f"  beside it: {name}", mib(size), "", "", "")
    for name, quantile in (("p50", 0.5), ("p95", 0.95)):
        ours, direct = at(converse, quantile), at(generate, quantile)
        row(
            f"time to first token, {name}",
            f"{ours * 1000:.1f} ms",
            f"{direct * 1000:.1f} ms",
            f"{ours / direct:.1f}",
            "",
        )
        row(f"  added by Converse, {name}", f"{(ours - direct) * 1000:.1f} ms", "", "", "")


def row(what: str, measured: str, baseline: str, ratio: str, aim: str) -> None:
    print(f"{what:34}{measured:>12}{baseline:>12}{ratio:>8}  {aim}", flush=True)


def mib(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def at(values: list[float], quantile: float) -> float:
    return sorted(values)[min(len(values) - 1, int(quantile * len(values)))]


def bare_process() -> tuple[float, int]:
    """Seconds to be up and resident bytes of a process that only imports grpc."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", BARE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    process.stdout.readline()
    seconds, size = time.perf_counter() - began, psutil.Process(process.pid).memory_info().rss
    process.stdin.close()
    process.wait()
    return seconds, size


@contextmanager
def served(data: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A mesh on this folder; entered when every service says SERVING."""
    with (data / "bench-serve.log").open("ab") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "janus_app",
                "serve",
                "--data",
                str(data),
                "--listen",
                "127.0.0.1:0",
                "--http",
                "127.0.0.1:0",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=WITHOUT_KEYS,
        )
    try:
        wait_until_serving(data, process)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def wait_until_serving(data: Path, process: subprocess.Popen[bytes]) -> None:
    until = time.perf_counter() + 60
    while time.perf_counter() < until and process.poll() is None:
        state = read_state(data)
        if state and state.pid == process.pid and (address := state.published.get("grpc")):
            with grpc.insecure_channel(address) as channel:
                health = health_pb2_grpc.HealthStub(channel)
                try:
                    if all(
                        health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5).status
                        == health_pb2.HealthCheckResponse.SERVING
                        for name in SERVICES
                    ):
                        return
                except grpc.RpcError:
                    pass
        time.sleep(0.005)
    raise SystemExit(
        f"the mesh did not start; see {data / 'bench-serve.log'}:\n{(data / 'bench-serve.log').read_text()[-2000:]}"
    )


def first_tokens(mesh: Mesh, turns: int) -> tuple[list[float], list[float]]:
    """Seconds to the first text, through Converse and asked directly, alternating."""
    mesh.orchestration.PutAgent(orchestration_pb.PutAgentRequest(agent=agent_pb2.Agent(name="bench", model=MODEL)))
    thread = mesh.orchestration.CreateThread(
        orchestration_pb.CreateThreadRequest(thread=thread_pb2.Thread(agent="bench", subject="bench"))
    ).thread.id
    said = content.Message(role=content.ROLE_USER, parts=[content.Part(text="What was said about the venting gas?")])

    def converse() -> Iterator[str]:
        request = orchestration_pb.ConverseRequest(input=orchestration_pb.RunInput(thread_id=thread, messages=[said]))
        return (reply.event.model.event.text_delta.text for reply in mesh.orchestration.Converse(request))

    def generate() -> Iterator[str]:
        request = inference_pb.StreamGenerateRequest(prompt=request_pb2.Prompt(model=MODEL, messages=[said]))
        return (reply.event.text_delta.text for reply in mesh.inference.StreamGenerate(request))

    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(turns + 5):
        for kept, ask in zip(times, (converse, generate), strict=True):
            seconds = first_text(ask)
            if turn >= 5:  # the first ones open connections and fill caches
                kept.append(seconds)
    return times


def first_text(ask: Callable[[], Iterator[str]]) -> float:
    began = time.perf_counter()
    seconds = 0.0
    for text in ask():
        if text and not seconds:
            seconds = time.perf_counter() - began
    return seconds


if __name__ == "__main__":
    main()
