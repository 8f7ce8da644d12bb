"""Following a run to its end, however often its stream is cut."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import grpc
from rich.console import Console

from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_app.client import PATIENCE_SECONDS, PAUSE_SECONDS
from janus_app.transcript import Transcript

CUT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
"""Ends of a stream that are not its run's: a stream has a deadline, and a run may wait for days."""

Watch = Callable[[pb.WatchRunRequest], Iterable[pb.WatchRunResponse]]


def follow(console: Console, watch: Watch, run_id: str, transcript: Transcript) -> None:
    """Show what the transcript has not yet, to the terminal event; after a handoff that of the run that goes on.

    The run is durable: whoever serves next goes on where the stream was cut.
    Raises what the transcript raises, and grpc.RpcError when nobody serves for
    75 s.
    """
    give_up: float | None = None
    while True:
        seen, begun = transcript.cursor.sequence, time.monotonic()
        try:
            request = pb.WatchRunRequest(run_id=run_id, after=transcript.cursor if seen else None)
            transcript.follow(reply.event for reply in watch(request))
        except grpc.RpcError as error:
            now = time.monotonic()
            # Somebody served: a stream of a run that waits says nothing, but lasts.
            if transcript.cursor.sequence > seen or now - begun > PATIENCE_SECONDS:
                give_up = None
            if error.code() not in CUT or (give_up is not None and now >= give_up):
                raise
            if give_up is None:
                give_up = now + PATIENCE_SECONDS
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    told = f"the stream was cut; waiting for the mesh, up to {PATIENCE_SECONDS:.0f} s …"
                    console.print(f"\n[yellow]{told}[/]", highlight=False)
            time.sleep(PAUSE_SECONDS)
        else:
            give_up, run_id = None, transcript.hand_on()
            if not run_id:
                return
