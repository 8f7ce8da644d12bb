"""Following a run to its end, however often its stream is cut."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import grpc
from rich.console import Console

from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_app.transcript import Transcript

ATTEMPTS = 40
PAUSE_SECONDS = 0.5

CUT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
"""Ends of a stream that are not its run's: a stream has a deadline, and a run may wait for days."""

Watch = Callable[[pb.WatchRunRequest], Iterable[pb.WatchRunResponse]]


def follow(console: Console, watch: Watch, run_id: str, transcript: Transcript) -> None:
    """Show what the transcript has not yet, to the terminal event; after a handoff that of the run that goes on.

    The run is durable: whoever serves next goes on where the stream was cut.
    Raises what the transcript raises, and grpc.RpcError when nobody serves for
    too long.
    """
    attempts = 0
    while True:
        seen = transcript.cursor.sequence
        try:
            request = pb.WatchRunRequest(run_id=run_id, after=transcript.cursor if seen else None)
            transcript.follow(reply.event for reply in watch(request))
        except grpc.RpcError as error:
            if transcript.cursor.sequence > seen:
                attempts = 0
            if error.code() not in CUT or attempts == ATTEMPTS:
                raise
            if not attempts and error.code() is grpc.StatusCode.UNAVAILABLE:
                console.print("\n[yellow]the stream was cut; waiting for the mesh …[/]")
            attempts += 1
            time.sleep(PAUSE_SECONDS)
        else:
            attempts, run_id = 0, transcript.hand_on()
            if not run_id:
                return
