"""Starting runs in the background, and watching them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import typer
from rich.console import Console

from janus_api.content.v1 import message_pb2 as content
from janus_api.orchestration.v1 import event_pb2, run_pb2, thread_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_app.calls import Calls
from janus_app.following import follow
from janus_app.terminal import print_json
from janus_app.transcript import RunFailed, Transcript

_LEFT = 130
"""Exit code of a command that was left with Ctrl-C, as shells have it."""


def labels_of(texts: Sequence[str]) -> dict[str, str]:
    """Labels written as key=value. Raises BadParameter for one that is not."""
    labels = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"'{text}' is no label: write key=value.")
        labels[key] = value
    return labels


def start(
    calls: Calls,
    text: str,
    *,
    thread: str,
    agent: str,
    subject: str,
    model: str,
    labels: Mapping[str, str],
    request_id: str,
) -> run_pb2.Run:
    """Start a run, in a new thread unless one is named; returns when it is durable."""
    said = sys.stdin.read() if text == "-" else text
    if not thread:
        made = pb.CreateThreadRequest(
            thread=thread_pb2.Thread(agent=agent, subject=subject), request_id=f"{request_id}.t" if request_id else ""
        )
        thread = calls.unary("CreateThread", made).thread.id
    message = content.Message(role=content.ROLE_USER, name=subject, parts=[content.Part(text=said)])
    asked = pb.RunInput(
        thread_id=thread, agent=agent, messages=[message], model=model, labels=labels, request_id=request_id
    )
    run: run_pb2.Run = calls.unary("StartRun", pb.StartRunRequest(input=asked)).run
    return run


class _JsonLines(Transcript):
    """Events as JSON, a line each."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))

    def show(self, event: event_pb2.RunEvent) -> None:
        print_json(event)
        super().show(event)


def watch(console: Console, calls: Calls, run_id: str, *, as_json: bool = False) -> int:
    """Show a run to its end; the exit code. Ctrl-C leaves the run going and says how to come back."""
    transcript = _JsonLines() if as_json else Transcript(console, whose=calls.whose)
    try:
        follow(console, lambda request: calls.stream("WatchRun", request), run_id, transcript)
    except RunFailed as failure:
        console.print(str(failure), style="red", highlight=False, markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("\nThe run goes on without you.", highlight=False)
        hint(console, calls, run_id)
        return _LEFT
    return 0


def hint(console: Console, calls: Calls, run_id: str) -> None:
    """How to come back to a run."""
    for what, command in (("Watch", "watch"), ("Stop", "cancel")):
        line = f"{what} it: janus run {command} {run_id}{calls.whose}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
