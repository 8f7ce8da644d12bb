"""What a person sees of a run."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from janus_api.content.v1 import message_pb2 as content
from janus_api.inference.v1 import event_pb2 as inference
from janus_api.memory.v1 import recall_pb2, record_pb2
from janus_api.memory.v1 import scope_pb2 as memory_scope
from janus_api.orchestration.v1 import event_pb2 as pb
from janus_api.orchestration.v1 import run_pb2
from janus_app.transcript import RunFailed, Transcript


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def transcript(screen: io.StringIO) -> Transcript:
    return Transcript(Console(file=screen, width=120))


def said(text: str) -> pb.RunEvent:
    delta = inference.GenerationEvent(text_delta=inference.TextDelta(text=text))
    return pb.RunEvent(model=pb.ModelEvent(event=delta))


def hit(text: str) -> recall_pb2.RecallHit:
    message = content.Message(id="m1", name="Lovell", parts=[content.Part(text=text)])
    turn = record_pb2.Turn(message=message, scope=memory_scope.Scope(thread="loop"))
    turn.occurred_at.FromJsonString("1970-04-14T03:22:07Z")
    return recall_pb2.RecallHit(turn=turn)


def test_recalled_memories_are_shown_with_their_source(transcript: Transcript, screen: io.StringIO) -> None:
    transcript.show(pb.RunEvent(memory_recalled=pb.MemoryRecalled(hits=[hit("It's a gas [of] some sort.")])))
    assert "Lovell, 14 April 1970, thread loop: It's a gas [of] some sort." in screen.getvalue()


def test_nothing_that_was_said_acts_on_the_terminal(transcript: Transcript, screen: io.StringIO) -> None:
    bad = "\x1b[2Jgone\x07\r"
    family = "👩\u200d👧"
    transcript.show(pb.RunEvent(memory_recalled=pb.MemoryRecalled(hits=[hit(f"recalled {bad}")])))
    call = content.ToolCall(call_id="c", name="t", arguments_json=f"called {bad}")
    transcript.show(pb.RunEvent(tool_call_requested=pb.ToolCallRequested(call=call)))
    failed = content.ToolResult(call_id="c", is_error=True, parts=[content.Part(text=f"failed {bad}")])
    transcript.show(pb.RunEvent(tool_call_completed=pb.ToolCallCompleted(result=failed)))
    transcript.show(said(f"said {bad} {family}\nand more"))
    shown = screen.getvalue()
    assert not {"\x1b", "\x07", "\r"} & set(shown)
    for word in ("recalled", "called", "failed", "said"):
        assert f"{word} �[2Jgone�" in shown
    assert family in shown
    assert "\nand more" in shown


def test_recalled_records_without_a_text_are_not_shown(transcript: Transcript, screen: io.StringIO) -> None:
    hits = [hit(""), hit("one"), hit(" \n"), hit("two"), hit("three"), hit("four")]
    transcript.show(pb.RunEvent(memory_recalled=pb.MemoryRecalled(hits=hits)))
    *shown, more = screen.getvalue().splitlines()
    assert [line.split(": ")[1] for line in shown] == ["one", "two", "three"]
    assert more == "↺ and 1 more"
    assert len(transcript.hits) == 6


def test_tokens_are_shown_as_they_are_and_kept_as_the_answer(transcript: Transcript, screen: io.StringIO) -> None:
    for token in ("[bold]", "not ", "markup"):
        transcript.show(said(token))
    assert screen.getvalue() == "[bold]not markup"
    assert transcript.answer == "[bold]not markup"


def test_the_cursor_of_the_last_event_is_kept_for_resuming(transcript: Transcript) -> None:
    transcript.show(pb.RunEvent(run_id="run_1", cursor=run_pb2.Cursor(epoch=2, sequence=7)))
    assert (transcript.run_id, transcript.cursor.epoch, transcript.cursor.sequence) == ("run_1", 2, 7)


def test_what_a_restarted_attempt_had_said_is_dropped(transcript: Transcript) -> None:
    transcript.show(said("half"))
    transcript.show(pb.RunEvent(attempt_restarted=pb.AttemptRestarted()))
    transcript.show(said("whole"))
    assert transcript.answer == "whole"


def test_after_a_handoff_the_run_that_goes_on_is_followed_from_its_beginning(
    transcript: Transcript, screen: io.StringIO
) -> None:
    transcript.show(pb.RunEvent(run_id="run_1", cursor=run_pb2.Cursor(epoch=1, sequence=9)))
    assert transcript.hand_on() == ""
    assert transcript.run_id == "run_1"
    transcript.show(pb.RunEvent(handoff=pb.Handoff(to_agent="billing", child_run_id="run_2")))
    transcript.show(pb.RunEvent(run_completed=pb.RunCompleted()))
    assert "billing goes on" in screen.getvalue()
    assert (transcript.hand_on(), transcript.run_id, transcript.cursor.sequence) == ("run_2", "run_2", 0)
    assert not transcript.ended
    assert transcript.hand_on() == ""


def test_tools_are_shown_and_what_was_said_before_them_is_not_the_answer(
    transcript: Transcript, screen: io.StringIO
) -> None:
    transcript.show(said("let me look"))
    call = content.ToolCall(call_id="c1", name="time.now", arguments_json='{"time_zone": "[UTC]"}')
    transcript.show(pb.RunEvent(tool_call_requested=pb.ToolCallRequested(call=call)))
    failed = content.ToolResult(call_id="c1", is_error=True, parts=[content.Part(text="no such zone")])
    transcript.show(pb.RunEvent(tool_call_completed=pb.ToolCallCompleted(result=failed)))
    transcript.show(said("I do not know"))
    assert '⚙ time.now {"time_zone": "[UTC]"}' in screen.getvalue()
    assert "⚙ failed: no such zone" in screen.getvalue()
    assert transcript.answer == "I do not know"


def test_a_call_that_waits_for_the_client_says_so_and_is_shown_whole(
    transcript: Transcript, screen: io.StringIO
) -> None:
    call = content.ToolCall(
        call_id="c1", name="where.am_i", arguments_json='{"of": "[red]me\x9b", "x": "' + "x" * 500 + '"}'
    )
    transcript.show(said("let me ask"))
    transcript.show(pb.RunEvent(tool_call_requested=pb.ToolCallRequested(call=call, client_side=True)))
    assert '\n⚙ waits for its client: where.am_i {"of": "[red]me�", "x": "' + "x" * 500 + '"}\n' in screen.getvalue()
    assert transcript.answer == ""


@pytest.mark.parametrize("ending", [{"run_failed": pb.RunFailed()}, {"run_cancelled": pb.RunCancelled()}])
def test_a_run_that_did_not_complete_is_an_error(transcript: Transcript, ending: dict[str, object]) -> None:
    with pytest.raises(RunFailed):
        transcript.follow([said("half"), pb.RunEvent(**ending)])  # type: ignore[arg-type]
    assert transcript.ended
