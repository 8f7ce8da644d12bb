"""`janus demo`: the main job on real input, in under half a minute.

A real conversation is played over gRPC; the mesh is killed with -9 and started again; a new thread
asks about what was said, and the answer must show the memory with its source; then the same recall
with the memory on Chroma. Anything that is not so ends with a non-zero exit code.
"""

from __future__ import annotations

import importlib.resources
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.rule import Rule

from janus_api.content.v1 import message_pb2 as content
from janus_api.memory.v1 import memory_service_pb2 as memory_pb
from janus_api.memory.v1 import record_pb2, space_pb2
from janus_api.memory.v1 import scope_pb2 as memory_scope
from janus_api.orchestration.v1 import agent_pb2, thread_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_app.client import Mesh, MeshNotUp, connect, explain
from janus_app.embedded import read_state
from janus_app.transcript import RunFailed, Transcript, source, text

START_SECONDS = 60.0
SUBJECT = "apollo-13"
REHEARSAL = "scripted/rehearsal"


class DemoFailed(Exception):
    """Something that Janus promises was not so."""


@dataclass(frozen=True)
class Turn:
    """One line of the conversation file."""

    at: datetime
    speaker: str
    text: str

    def message(self) -> content.Message:
        at = Timestamp()
        at.FromDatetime(self.at)
        return content.Message(
            role=content.ROLE_USER, name=self.speaker, parts=[content.Part(text=self.text)], created_at=at
        )


class Demo:
    """The scenes, in order. `data` must be a folder of its own: its mesh is killed."""

    def __init__(self, console: Console, data: Path, model: str) -> None:
        self._console = console
        self._data = data
        self._model = model or REHEARSAL
        script = json.loads((importlib.resources.files("janus_app") / "conversation.json").read_text())
        self._title, self._source = script["title"], script["source"]
        self._turns = [
            Turn(datetime.fromisoformat(turn["at"]), turn["speaker"], turn["text"]) for turn in script["turns"]
        ]
        self._question, self._expected = script["question"], script["question"]["expect"]

    def run(self) -> None:
        """Play every scene; raises DemoFailed where a promise does not hold."""
        begun = time.monotonic()
        self._scene("1  Start everything: Postgres + pgvector, Valkey, Chroma and the services")
        with self._served() as process:
            with connect(self._data) as mesh:
                self._play(mesh)
            self._scene(f"2  kill -9 the whole mesh (process {process.pid} and its servers), then start it again")
            self._kill_everything(process)
        with self._served():
            with connect(self._data) as mesh:
                self._scene("3  A new thread asks about what was said")
                first = self._ask(mesh, agent="flight-log", space="default")
                self._scene("4  The same, with the memory on Chroma")
                self._copy_to_chroma(mesh)
                second = self._ask(mesh, agent="flight-log-chroma", space="chroma")
            if first != second:
                raise DemoFailed(f"pgvector recalled {first!r} first, Chroma {second!r}")
        self._console.print(
            f"\n[green]✓ All of it held, in {time.monotonic() - begun:.1f} s.[/] Next: make run",
            highlight=False,
        )

    def _scene(self, title: str) -> None:
        self._console.print()
        self._console.print(Rule(title, align="left", style="dim"))

    @contextmanager
    def _served(self) -> Iterator[subprocess.Popen[bytes]]:
        """`janus serve` as its own process, as a user would run it."""
        log = self._data / "demo-serve.log"
        self._data.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic()
        with log.open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 - our own words
                [
                    sys.executable,
                    "-m",
                    "janus_app",
                    "serve",
                    "--data",
                    str(self._data),
                    "--listen",
                    "127.0.0.1:0",
                    "--http",
                    "127.0.0.1:0",
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=output,
                start_new_session=True,
            )
        try:
            self._wait_until_up(process, log)
            self._console.print(f"[dim]up in {time.monotonic() - begun:.1f} s[/]", highlight=False)
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise DemoFailed("the mesh did not stop within 20 s of SIGTERM") from None

    def _wait_until_up(self, process: subprocess.Popen[bytes], log: Path) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if process.poll() is not None:
                raise DemoFailed(f"the mesh did not start:\n{_tail(log)}")
            state = read_state(self._data)
            if state and state.pid == process.pid and state.published.get("grpc"):
                try:
                    with connect(self._data):
                        return
                except MeshNotUp:
                    pass
            time.sleep(0.02)
        raise DemoFailed(f"the mesh was not up after {START_SECONDS:.0f} s:\n{_tail(log)}")

    def _play(self, mesh: Mesh) -> None:
        self._put_agent(mesh, "flight-log", "default")
        self._console.print(f"[dim]{self._title}. {self._source}. Answers: {self._model}.[/]", highlight=False)
        thread = mesh.orchestration.CreateThread(
            pb.CreateThreadRequest(thread=thread_pb2.Thread(agent="flight-log", subject=SUBJECT, title=self._title))
        ).thread
        for turn in self._turns:
            self._console.print(f"\n[bold]{turn.speaker} ›[/] {turn.text}", highlight=False)
            self._converse(mesh, thread.id, turn.message())

    def _put_agent(self, mesh: Mesh, name: str, space: str) -> None:
        mesh.orchestration.PutAgent(
            pb.PutAgentRequest(
                agent=agent_pb2.Agent(
                    name=name,
                    model=self._model,
                    instructions="You keep the flight log. Answer from what was recalled and name who said it.",
                    memory=agent_pb2.MemoryPolicy(space=space, recall_limit=5),
                )
            )
        )

    def _converse(self, mesh: Mesh, thread: str, message: content.Message) -> Transcript:
        transcript = Transcript(self._console)
        replies = mesh.orchestration.Converse(
            pb.ConverseRequest(input=pb.RunInput(thread_id=thread, messages=[message])), timeout=60
        )
        transcript.follow(reply.event for reply in replies)
        return transcript

    def _kill_everything(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL the mesh and its embedded servers at once: nobody gets to say goodbye."""
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        for pid in [process.pid, *children]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        self._console.print("[dim]killed[/]")

    def _ask(self, mesh: Mesh, agent: str, space: str) -> str:
        """Ask in a new thread; the id of the best hit, which must be the expected words and be in the answer."""
        self._put_agent(mesh, agent, space)
        thread = mesh.orchestration.CreateThread(
            pb.CreateThreadRequest(thread=thread_pb2.Thread(agent=agent, subject=SUBJECT))
        ).thread
        self._console.print(f"[bold]{self._question['speaker']} ›[/] {self._question['text']}", highlight=False)
        question = content.Message(
            role=content.ROLE_USER,
            name=self._question["speaker"],
            parts=[content.Part(text=self._question["text"])],
        )
        transcript = self._converse(mesh, thread.id, question)
        expected = self._expected["text"]
        found = [hit for hit in transcript.hits if expected in text(hit)]
        if not found:
            raise DemoFailed(f"{expected!r} was not recalled from the space {space!r}")
        hit = found[0]
        if self._expected["speaker"] not in source(hit):
            raise DemoFailed(f"the memory's source is {source(hit)!r}, not {self._expected['speaker']}")
        if self._model == REHEARSAL and (
            expected not in transcript.answer or hit.turn.scope.thread not in transcript.answer
        ):
            raise DemoFailed("the answer does not show the recalled memory with its source")
        self._console.print(
            f"[green]✓ recalled from {space}[/] [dim]{source(hit)}, message {hit.turn.message.id}[/]",
            highlight=False,
        )
        return text(hit)

    def _copy_to_chroma(self, mesh: Mesh) -> None:
        """The same turns into a space whose vectors live in Chroma; returns when they are searchable."""
        mesh.memory.PutSpace(
            memory_pb.PutSpaceRequest(space=space_pb2.Space(name="chroma", backend=space_pb2.VECTOR_BACKEND_CHROMA))
        )
        reply = mesh.memory.AppendMessages(
            memory_pb.AppendMessagesRequest(
                scope=memory_scope.Scope(space="chroma", subject=SUBJECT, thread="voice-loop"),
                turns=[
                    record_pb2.Turn(message=message, occurred_at=message.created_at)
                    for message in (turn.message() for turn in self._turns)
                ],
                consistency=memory_scope.CONSISTENCY_READ_YOUR_WRITES,
            ),
            timeout=30,
        )
        if not reply.searchable or reply.degraded:
            raise DemoFailed(f"the turns are not searchable in Chroma (degraded: {', '.join(reply.degraded) or 'no'})")


def _tail(log: Path, lines: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def play(console: Console, data: Path, model: str) -> None:
    """Run the demo and turn what a client can see go wrong into DemoFailed."""
    try:
        Demo(console, data, model).run()
    except grpc.RpcError as error:
        raise DemoFailed(explain(error)) from error
    except (RunFailed, MeshNotUp) as error:
        raise DemoFailed(str(error)) from error
