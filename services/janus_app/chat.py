"""`janus chat`: talk to the mesh; tokens as they come, and what was recalled."""

from __future__ import annotations

import time

import grpc
from rich.console import Console

from janus_api.content.v1 import message_pb2 as content
from janus_api.orchestration.v1 import agent_pb2, thread_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_app.client import Mesh, explain
from janus_app.transcript import RunFailed, Transcript

AGENT = "janus-chat"
RESUME_ATTEMPTS = 40
RESUME_PAUSE_SECONDS = 0.5

INSTRUCTIONS = "You are a helpful assistant. Use what was recalled when it helps, and say where it is from."
HELP = (
    "Type a message. /new starts another thread (memory stays), /help shows this, "
    "/quit or Ctrl-D ends. Ctrl-C stops an answer."
)


class Chat:
    """One person at a terminal, in one thread at a time."""

    def __init__(self, mesh: Mesh, console: Console, *, subject: str, model: str, thread: str) -> None:
        self._mesh = mesh
        self._console = console
        self._subject = subject
        agent = agent_pb2.Agent(name=AGENT, model=model, instructions=INSTRUCTIONS)
        mesh.orchestration.PutAgent(pb.PutAgentRequest(agent=agent))
        self._thread = thread or self._new_thread()

    def _new_thread(self) -> str:
        thread = thread_pb2.Thread(agent=AGENT, subject=self._subject)
        return self._mesh.orchestration.CreateThread(pb.CreateThreadRequest(thread=thread)).thread.id

    def loop(self) -> None:
        """Read, answer, repeat; returns at end of input or /quit."""
        self._console.print(f"[dim]thread {self._thread} at {self._mesh.address}. {HELP}[/]", highlight=False)
        while True:
            try:
                said = self._console.input("[bold]you ›[/] ").strip()
            except (EOFError, KeyboardInterrupt):
                self._console.print()
                return
            if said == "/quit":
                return
            if said == "/help":
                self._console.print(HELP, highlight=False, markup=False)
            elif said == "/new":
                self._thread = self._new_thread()
                self._console.print(f"[dim]thread {self._thread}[/]", highlight=False)
            elif said:
                self._turn(said)

    def _turn(self, said: str) -> None:
        transcript = Transcript(self._console)
        try:
            self._converse(said, transcript)
        except KeyboardInterrupt:
            if transcript.run_id:
                self._mesh.orchestration.CancelRun(
                    pb.CancelRunRequest(run_id=transcript.run_id, reason="stopped at the terminal")
                )
            self._console.print("\n[yellow]stopped[/]")
        except RunFailed as failure:
            self._console.print(f"[red]{failure}[/]", highlight=False)
        except grpc.RpcError as error:
            self._console.print(explain(error), style="red", highlight=False, markup=False)

    def _converse(self, said: str, transcript: Transcript) -> None:
        message = content.Message(role=content.ROLE_USER, name=self._subject, parts=[content.Part(text=said)])
        replies = self._mesh.orchestration.Converse(
            pb.ConverseRequest(input=pb.RunInput(thread_id=self._thread, messages=[message]))
        )
        try:
            transcript.follow(reply.event for reply in replies)
        except grpc.RpcError as error:
            if not transcript.run_id or error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            self._resume(transcript)
        except KeyboardInterrupt:
            replies.cancel()
            raise

    def _resume(self, transcript: Transcript) -> None:
        """The run is durable: whoever serves next goes on where the stream was cut."""
        self._console.print("\n[yellow]the stream was cut; waiting for the mesh …[/]")
        for attempt in range(RESUME_ATTEMPTS):
            try:
                replies = self._mesh.orchestration.WatchRun(
                    pb.WatchRunRequest(run_id=transcript.run_id, after=transcript.cursor),
                    wait_for_ready=True,
                    timeout=600,
                )
                transcript.follow(reply.event for reply in replies)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE or attempt == RESUME_ATTEMPTS - 1:
                    raise
                time.sleep(RESUME_PAUSE_SECONDS)
            else:
                return
