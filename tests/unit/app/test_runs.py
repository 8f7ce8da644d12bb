"""What a person sees of runs, and how a run is followed when its stream is cut."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from rich.console import Console
from tests.unit.app.test_transcript import said

from janus_api.content.v1 import message_pb2 as content
from janus_api.content.v1 import usage_pb2
from janus_api.orchestration.v1 import agent_pb2, event_pb2, run_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_app import following
from janus_app.following import follow
from janus_app.refusals import Refused
from janus_app.runs.showing import show, the_approval
from janus_app.runs.starting import watch
from janus_app.transcript import RunFailed, Transcript
from janus_kit.settings import ServerSettings


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def console(screen: io.StringIO) -> Console:
    return Console(file=screen, width=160)


def at(seconds: float) -> Any:
    stamp = run_pb2.Run().created_at
    stamp.FromMilliseconds(round(1_700_000_000_000 + seconds * 1000))
    return stamp


def step(index: int, kind: Any, start: float, end: float, **fields: Any) -> run_pb2.Step:
    return run_pb2.Step(
        index=index, kind=kind, attempts=fields.pop("attempts", 1), started_at=at(start), ended_at=at(end), **fields
    )


def approval(name: str) -> run_pb2.PendingCall:
    call = content.ToolCall(call_id="c", name="mail.send", arguments_json='{"to": "[red]bob[/red]"}')
    return run_pb2.PendingCall(
        approval=run_pb2.PendingApproval(approval_id=name, call=call, reason="it leaves the house"), expires_at=at(60)
    )


def test_a_timeline_shows_tries_failures_and_where_time_went(console: Console, screen: io.StringIO) -> None:
    usage = usage_pb2.Usage(
        input_uncached_tokens=7,
        cache_read_tokens=3,
        output_tokens=5,
        cost_micro_usd=1234,
        source=usage_pb2.USAGE_SOURCE_ESTIMATED,
    )
    run = run_pb2.Run(
        id="run_1",
        agent="helper",
        agent_version=2,
        state=run_pb2.RUN_STATE_FAILED,
        created_at=at(0),
        started_at=at(1),
        ended_at=at(101),
        takeovers=1,
        usage=usage,
        steps=[
            step(1, run_pb2.STEP_KIND_RECALL, 1, 51, summary="3 recalled"),
            step(2, run_pb2.STEP_KIND_MODEL_CALL, 51, 101, attempts=2, usage=usage, summary="fast"),
        ],
    )
    run.steps[1].error.message = "the model was away"
    run.error.message = "the model was away"
    show(console, run, as_json=False)
    shown = screen.getvalue()
    recall, call = (line for line in shown.splitlines() if "█" in line)
    assert recall.count("█") == call.count("█") == 16
    assert recall.index("█") < call.index("█")
    assert call.split()[:8] == ["2", "model", "call", "2", "+50.00", "s", "50.00", "s"]
    assert "~10 in, ~5 out" in call
    assert "$0.001234" in call
    assert "the model was away" in call
    assert "1 min 40 s" in shown
    assert "take-overs" in shown


def test_what_a_run_waits_for_is_shown_with_how_to_answer(console: Console, screen: io.StringIO) -> None:
    run = run_pb2.Run(id="run_1", state=run_pb2.RUN_STATE_WAITING_APPROVAL, waiting_for=[approval("apr_1")])
    run.waiting_for.add(input=run_pb2.PendingInput(input_id="i", question="Which one?"), expires_at=at(60))
    run.waiting_for.add(tool=run_pb2.PendingTool(call=content.ToolCall(name="click")), expires_at=at(60))
    show(console, run, as_json=False)
    shown = screen.getvalue()
    assert "janus run approve run_1 apr_1 [--decline]" in shown
    assert "[red]bob[/red]" in shown
    assert "it leaves the house" in shown
    assert "Which one?" in shown
    assert "click" in shown


def test_the_only_request_for_consent_needs_no_name() -> None:
    assert the_approval(run_pb2.Run(waiting_for=[approval("apr_1")])) == "apr_1"
    with pytest.raises(Refused, match="nobody"):
        the_approval(run_pb2.Run(id="run_1"))
    with pytest.raises(Refused, match="apr_1, apr_2"):
        the_approval(run_pb2.Run(waiting_for=[approval("apr_1"), approval("apr_2")]))


class Cut(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code


class Streams:
    """Streams that give so many events and are then cut, but for the last."""

    def __init__(self, *streams: list[event_pb2.RunEvent] | Cut) -> None:
        self._streams = iter(streams)
        self.asked: list[int] = []

    def __call__(self, request: pb.WatchRunRequest) -> Iterator[pb.WatchRunResponse]:
        self.asked.append(request.after.sequence if request.HasField("after") else 0)
        events = next(self._streams)
        if isinstance(events, Cut):
            raise events
        for event in events:
            yield pb.WatchRunResponse(event=event)
        if events[-1].WhichOneof("event") != "run_completed":
            raise Cut


def numbered(*events: event_pb2.RunEvent) -> list[event_pb2.RunEvent]:
    for sequence, event in enumerate(events, 1):
        event.cursor.sequence = sequence
        event.cursor.epoch = 1
    return list(events)


def test_a_run_is_followed_over_streams_that_are_cut(
    console: Console, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "PAUSE_SECONDS", 0)
    events = numbered(said("one "), said("two "), said("three"), event_pb2.RunEvent(run_completed={}))
    streams = Streams(events[:1], Cut(), Cut(), events[1:3], events[3:])
    transcript = Transcript(console)
    follow(console, streams, "run_1", transcript)
    assert streams.asked == [0, 1, 1, 1, 3]
    assert transcript.answer == "one two three"
    assert transcript.ended


class Watched:
    """The calls of a command that watches."""

    whose = ""

    def __init__(self, *events: event_pb2.RunEvent) -> None:
        self._events = events

    def stream(self, method: str, request: pb.WatchRunRequest) -> Iterator[pb.WatchRunResponse]:
        assert (method, request.run_id) == ("WatchRun", "run_1")
        return (pb.WatchRunResponse(event=event) for event in self._events)


@pytest.mark.parametrize(("end", "code"), [("run_completed", 0), ("run_failed", 1)])
def test_programs_get_every_event_as_a_line(
    console: Console, screen: io.StringIO, capsys: pytest.CaptureFixture[str], end: str, code: int
) -> None:
    events = numbered(said("one\n"), said("two"), event_pb2.RunEvent(**{end: {}}))
    assert watch(console, Watched(*events), "run_1", as_json=True) == code  # type: ignore[arg-type]
    lines = [json_format.Parse(line, event_pb2.RunEvent()) for line in capsys.readouterr().out.splitlines()]
    assert lines == events
    assert bool(screen.getvalue()) == bool(code), "how it failed goes elsewhere"


def test_a_run_is_followed_beyond_the_deadline_of_a_stream(
    console: Console, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "PAUSE_SECONDS", 0)
    quiet = [Cut(grpc.StatusCode.DEADLINE_EXCEEDED) for _ in range(3)]
    streams = Streams(*quiet, numbered(event_pb2.RunEvent(run_completed={})))
    follow(console, streams, "run_1", Transcript(console))
    assert streams.asked == [0, 0, 0, 0]
    assert "was cut" not in screen.getvalue()


class Time:
    """Passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    passing = Time()
    monkeypatch.setattr(following, "time", passing)
    return passing


def test_a_mesh_is_waited_for_longer_than_it_drains_and_is_then_given_up(
    console: Console, screen: io.StringIO, time: Time
) -> None:
    def away(_: pb.WatchRunRequest) -> Iterator[pb.WatchRunResponse]:
        raise Cut

    with pytest.raises(Cut):
        follow(console, away, "run_1", Transcript(console))
    assert time.now == 75 > ServerSettings().drain_s + 30
    assert screen.getvalue().count("the stream was cut; waiting for the mesh, up to 75 s …") == 1
    with pytest.raises(Cut):
        follow(console, Streams(Cut(grpc.StatusCode.NOT_FOUND)), "run_1", Transcript(console))
    assert time.now == 75, "what is refused is not waited for"


def test_streams_of_a_run_that_says_nothing_may_be_cut_for_days(
    console: Console, screen: io.StringIO, time: Time
) -> None:
    ends = iter([grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE] * 24)
    done = numbered(event_pb2.RunEvent(run_completed={}))

    def watch_for_an_hour(_: pb.WatchRunRequest) -> Iterator[pb.WatchRunResponse]:
        end = next(ends, None)
        if end is None:
            yield pb.WatchRunResponse(event=done[0])
            return
        time.sleep(3600)
        raise Cut(end)

    follow(console, watch_for_an_hour, "run_1", transcript := Transcript(console))
    assert transcript.ended
    assert screen.getvalue().count("was cut") == 24


def test_a_wait_is_ended_by_ctrl_c(console: Console, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    class Away:
        whose = ""

        def stream(self, method: str, request: pb.WatchRunRequest) -> Any:
            raise Cut

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(following.time, "sleep", interrupted)
    assert watch(console, Away(), "run_1") == 130  # type: ignore[arg-type]
    assert "janus run watch run_1" in screen.getvalue()


def test_an_answer_whose_tokens_have_expired_is_shown_as_it_was_committed(
    console: Console, screen: io.StringIO
) -> None:
    answer = content.Message(role=content.ROLE_ASSISTANT, parts=[content.Part(text="whole [b]answer[/b]")])
    asked = content.Message(role=content.ROLE_USER, parts=[content.Part(text="question")])
    transcript = Transcript(console)
    for message in (asked, answer):
        for _ in range(2):
            transcript.show(event_pb2.RunEvent(replay_compacted={}))
        assert screen.getvalue().count("older tokens have expired") == 1
        transcript.show(event_pb2.RunEvent(message_committed=event_pb2.MessageCommitted(message=message)))
    transcript.show(event_pb2.RunEvent(run_completed={}))
    assert transcript.answer == "whole [b]answer[/b]"
    assert "whole [b]answer[/b]" in screen.getvalue()
    assert "question" not in screen.getvalue()


def test_a_watcher_is_told_of_consent_and_of_a_rollback(console: Console, screen: io.StringIO) -> None:
    transcript = Transcript(console)
    asked = approval("apr_1").approval
    # All of it is what the person consents to, and nothing in it acts on the terminal.
    asked.call.arguments_json = '{"to": "[red]bob[/red]\x9b2K", "text": "' + "x" * 500 + '"}'
    requested = event_pb2.ApprovalRequested(approval=asked)
    transcript.show(event_pb2.RunEvent(run_id="run_1", approval_requested=requested))
    shown = screen.getvalue()
    assert "janus run approve run_1 apr_1 [--decline]" in shown
    assert "[red]bob[/red]�2K" in shown
    assert "x" * 500 + '"}' in shown
    assert "it leaves the house" in shown
    for decided_by, word in (("ann", "declined by ann: [no]"), ("", "declined, since nobody decided in time: [no]")):
        resolved = event_pb2.ApprovalResolved(
            decision=agent_pb2.APPROVAL_DECISION_DECLINED, decided_by=decided_by, comment="[no]"
        )
        transcript.show(event_pb2.RunEvent(approval_resolved=resolved))
        assert word in screen.getvalue()
    with pytest.raises(RunFailed, match="cancelled: changed my mind; its messages are gone from the thread"):
        transcript.show(event_pb2.RunEvent(run_cancelled={"reason": "changed my mind", "rolled_back": True}))
