"""Draws a run's events in a terminal: what was recalled, then the tokens as they come."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape

from janus_api.content.v1 import message_pb2 as content
from janus_api.memory.v1 import recall_pb2
from janus_api.orchestration.v1 import event_pb2, run_pb2
from janus_app.terminal import decision_word, plain, spoken

SHOWN_CHARS = 110


class RunFailed(Exception):
    """The run ended otherwise than completed; the text says how."""


class Transcript:
    """Shows events and keeps what a caller needs: the answer, the hits, the cursor.

    ``whose`` is what commands take that it tells of, such as ` --tenant t`.
    """

    def __init__(self, console: Console, *, whose: str = "") -> None:
        self._console = console
        self._whose = whose
        self._in_answer = False
        self._has_gap = False
        self.run_id = ""
        self.cursor = run_pb2.Cursor()
        self.answer = ""
        self.hits: list[recall_pb2.RecallHit] = []
        self.ended = False
        self.goes_on = ""
        """The run in which another agent goes on."""

    def follow(self, events: Iterable[event_pb2.RunEvent]) -> None:
        """Show events to the terminal one. Raises RunFailed when that is not `run_completed`."""
        for event in events:
            self.show(event)

    def show(self, event: event_pb2.RunEvent) -> None:
        """Show one event and remember its cursor, so that a cut stream can be resumed."""
        self.run_id = event.run_id
        self.cursor = event.cursor
        kind = event.WhichOneof("event")
        if kind == "memory_recalled":
            self._recalled(event.memory_recalled)
        elif kind == "model":
            self._model(event.model)
        elif kind == "tool_call_requested":
            self._tool_call(event.tool_call_requested)
        elif kind == "tool_call_completed" and event.tool_call_completed.result.is_error:
            said = " ".join(part.text for part in event.tool_call_completed.result.parts)
            self._line(f"[yellow]⚙ failed: {_safe(_short(said))}[/]")
        elif kind == "attempt_restarted":
            self._line("[yellow]the model call begins again; what it had said is dropped[/]")
            self.answer = ""
        elif kind == "replay_compacted":
            if not self._has_gap:
                self._line("[dim]older tokens have expired; here is what was committed[/]")
            self._has_gap = True
        elif kind == "message_committed":
            self._committed(event.message_committed)
        elif kind == "approval_requested":
            self._asks_for_consent(event.approval_requested.approval)
        elif kind == "approval_resolved":
            self._decided(event.approval_resolved)
        elif kind == "input_requested":
            self._notice(f"? {event.input_requested.input.question}")
        elif kind == "handoff":
            self.goes_on = event.handoff.child_run_id
            self._line(f"[dim]→ {_safe(event.handoff.to_agent)} goes on[/]")
        elif kind == "run_completed":
            self._end()
        elif kind == "run_failed":
            self._end()
            raise RunFailed(f"the run failed: {event.run_failed.status.message}")
        elif kind == "run_cancelled":
            self._end()
            raise RunFailed(_cancelled(event.run_cancelled))
        elif kind == "run_expired":
            self._end()
            raise RunFailed(f"the run expired waiting for {event.run_expired.waited_for}")

    def hand_on(self) -> str:
        """Go over to the run in which another agent goes on; empty when there is none."""
        run_id, self.goes_on = self.goes_on, ""
        if run_id:
            self.run_id, self.cursor, self.answer, self.ended = run_id, run_pb2.Cursor(), "", False
        return run_id

    def _committed(self, committed: event_pb2.MessageCommitted) -> None:
        message = committed.message
        if self._has_gap and message.role == content.ROLE_ASSISTANT:
            # Its tokens are gone, or a part of them is.
            said = "".join(part.text for part in message.parts)
            if said:
                self.answer = said
                self._line(_safe(said))
            self._has_gap = False
        if committed.degraded:
            self._line(f"[yellow]stored, will catch up: {', '.join(committed.degraded)}[/]")

    def _asks_for_consent(self, asked: run_pb2.PendingApproval) -> None:
        # In full: it is what the person consents to.
        self._notice(f"⚙ waits for consent: {asked.call.name} {asked.call.arguments_json}")
        self._notice(f"  {asked.reason}")
        self._notice(f"  janus run approve {self.run_id} {asked.approval_id}{self._whose} [--decline]")

    def _decided(self, resolved: event_pb2.ApprovalResolved) -> None:
        word = decision_word(resolved.decision)
        told = f"{word} by {resolved.decided_by}" if resolved.decided_by else f"{word}, since nobody decided in time"
        comment = f": {_short(resolved.comment)}" if resolved.comment else ""
        self._line(f"[dim]⚙ {_safe(told + comment)}[/]")

    def _end(self) -> None:
        self.ended = True
        self._line("")

    def _recalled(self, recalled: event_pb2.MemoryRecalled) -> None:
        self.hits = list(recalled.hits)
        shown = [hit for hit in self.hits if text(hit).strip()]
        if recalled.degraded:
            self._line(f"[yellow]memory is poorer for now: {', '.join(recalled.degraded)} away[/]")
        for hit in shown[:3]:
            self._line(f"[dim]↺ {_safe(source(hit))}: {_safe(_short(text(hit)))}[/]")
        if len(shown) > 3:
            self._line(f"[dim]↺ and {len(shown) - 3} more[/]")

    def _tool_call(self, requested: event_pb2.ToolCallRequested) -> None:
        # What was said before a call is not the answer.
        self.answer = ""
        call = requested.call
        if requested.client_side:
            # In full: whoever looks on may have to do what it asks.
            self._notice(f"⚙ waits for its client: {call.name} {call.arguments_json}")
        else:
            self._line(f"[dim]⚙ {_safe(call.name)} {_safe(_short(call.arguments_json))}[/]")

    def _model(self, event: event_pb2.ModelEvent) -> None:
        delta = event.event.text_delta.text
        if delta:
            self._in_answer = True
            self.answer += delta
            self._console.out(spoken(delta), end="", highlight=False)

    def _notice(self, text: str) -> None:
        self._line("")
        self._console.print(plain(text), style="yellow", soft_wrap=True)

    def _line(self, markup: str) -> None:
        if self._in_answer:
            self._console.out("")
            self._in_answer = False
        if markup:
            self._console.print(markup, highlight=False, soft_wrap=True)


def _cancelled(event: event_pb2.RunCancelled) -> str:
    told = f"the run was cancelled: {event.reason}" if event.reason else "the run was cancelled"
    return f"{told}; its messages are gone from the thread" if event.rolled_back else told


def _safe(said: str) -> str:
    """Within markup."""
    return escape(spoken(said))


def _short(said: str) -> str:
    words = " ".join(said.split())
    return words if len(words) <= SHOWN_CHARS else f"{words[: SHOWN_CHARS - 1]}…"


def text(hit: recall_pb2.RecallHit) -> str:
    """The words of a recalled record."""
    if hit.WhichOneof("record") == "memory":
        return hit.memory.text
    return " ".join(part.text for part in hit.turn.message.parts if part.text)


def source(hit: recall_pb2.RecallHit) -> str:
    """Where a recalled record comes from: who, when, which thread."""
    if hit.WhichOneof("record") == "memory":
        return f"memory {hit.memory.id}"
    turn = hit.turn
    said = turn.occurred_at.ToDatetime()
    speaker = turn.message.name or content.Role.Name(turn.message.role).removeprefix("ROLE_").lower()
    return f"{speaker}, {said:%-d %B %Y}, thread {turn.scope.thread}"
