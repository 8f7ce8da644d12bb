"""`janus chat`: talk to the mesh; tokens as they come, and what was recalled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from rich.console import Console

from janus_api.content.v1 import message_pb2 as content
from janus_api.orchestration.v1 import agent_pb2, thread_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_app.answering import Answering
from janus_app.client import Mesh, explain
from janus_app.following import CUT, follow
from janus_app.terminal import plain
from janus_app.transcript import RunFailed, Transcript

AGENT = "janus-chat"
SHOWN_AGAIN = 6
"""Messages of a thread that is gone on with."""
FOLLOW_SECONDS = 600
CANCEL_SECONDS = 30

INSTRUCTIONS = "You are a helpful assistant. Use what was recalled when it helps, and say where it is from."
HELP = (
    "Type a message. /new starts another thread (memory stays), /help shows this, "
    "/quit or Ctrl-D ends. Ctrl-C stops an answer."
)


class Chat:
    """One person at a terminal, in one thread at a time."""

    def __init__(self, mesh: Mesh, console: Console, *, subject: str, model: str, agent: str = "") -> None:
        self._mesh = mesh
        self._console = console
        self._subject = subject
        self._agent = agent or AGENT
        # One of the user's own is not written to: the model is asked for with each message.
        self._model = model if agent else ""
        if agent:
            mesh.orchestration.GetAgent(pb.GetAgentRequest(name=agent))
        else:
            own = agent_pb2.Agent(name=AGENT, model=model, instructions=INSTRUCTIONS)
            mesh.orchestration.PutAgent(pb.PutAgentRequest(agent=own))
        self._answering = Answering(mesh.orchestration, console)
        self._thread = ""

    def open(self, thread: str, *, resume: bool) -> None:
        """Enter a thread; a new one unless one is named, or the newest is to be gone on with."""
        if resume and not thread:
            request = pb.ListThreadsRequest(subject=self._subject, agent=self._agent, page_size=1)
            newest = self._mesh.orchestration.ListThreads(request).threads
            thread = newest[0].id if newest else ""
        self._thread = thread or self._new_thread()
        if resume and thread:
            self._show_again()

    def _show_again(self) -> None:
        """The end of the thread; and a run of it that still goes on, from its beginning."""
        thread = self._mesh.orchestration.GetThread(pb.GetThreadRequest(thread_id=self._thread)).thread
        request = pb.ListMessagesRequest(thread_id=self._thread, page_size=SHOWN_AGAIN, descending=True)
        for item in reversed(self._mesh.orchestration.ListMessages(request).messages):
            said = " ".join(part.text for part in item.message.parts if part.text)
            if said:
                who = "you ›" if item.message.role == content.ROLE_USER else "janus ›"
                self._console.print(plain(f"{who} {said}"), style="dim")
        if thread.active_run_id:
            self._watched(lambda transcript: self._follow(thread.active_run_id, transcript))

    def _new_thread(self) -> str:
        thread = thread_pb2.Thread(agent=self._agent, subject=self._subject)
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
        self._watched(lambda transcript: self._converse(said, transcript))

    def _watched(self, work: Callable[[Transcript], None]) -> None:
        """Show a run; Ctrl-C stops it."""
        transcript = Transcript(self._console)
        try:
            work(transcript)
        except KeyboardInterrupt:
            self._stop(transcript.run_id)
        except EOFError:
            back = f"janus chat --resume --thread {self._thread}"
            self._console.print(f"\nThe run waits for you. Come back with: {back}", highlight=False, soft_wrap=True)
        except RunFailed as failure:
            self._console.print(f"[red]{failure}[/]", highlight=False)
        except grpc.RpcError as error:
            self._console.print(explain(error), style="red", highlight=False, markup=False)

    def _stop(self, run_id: str) -> None:
        """Cancel the run, if it is known which; without a mesh it goes on."""
        try:
            if run_id:
                request = pb.CancelRunRequest(run_id=run_id, reason="stopped at the terminal")
                self._mesh.orchestration.CancelRun(request, timeout=CANCEL_SECONDS)
            self._console.print("\n[yellow]stopped[/]")
        except grpc.RpcError as error:
            told = f"\nThe run goes on. {explain(error)}"
            self._console.print(told, style="red", highlight=False, markup=False)

    def _converse(self, said: str, transcript: Transcript) -> None:
        message = content.Message(role=content.ROLE_USER, name=self._subject, parts=[content.Part(text=said)])
        replies = self._mesh.orchestration.Converse(
            pb.ConverseRequest(input=pb.RunInput(thread_id=self._thread, messages=[message], model=self._model))
        )
        try:
            transcript.follow(reply.event for reply in self._answering.through(replies))
        except grpc.RpcError as error:
            if not transcript.run_id or error.code() not in CUT:
                raise
            self._follow(transcript.run_id, transcript)
        except (KeyboardInterrupt, EOFError):
            replies.cancel()
            raise
        if run_id := transcript.hand_on():
            self._follow(run_id, transcript)

    def _follow(self, run_id: str, transcript: Transcript) -> None:
        """The rest of a run whose stream was cut, or of one that was left."""

        def watch(request: pb.WatchRunRequest) -> Any:
            replies = self._mesh.orchestration.WatchRun(request, timeout=FOLLOW_SECONDS)
            return self._answering.through(replies)

        follow(self._console, watch, run_id, transcript)
