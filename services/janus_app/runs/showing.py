"""Runs on a terminal: as a list, and one with its timeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.text import Text

from janus_api.content.v1 import usage_pb2
from janus_api.orchestration.v1 import agent_pb2, run_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_app.calls import Calls
from janus_app.refusals import Refused
from janus_app.terminal import Column, decision_word, plain, print_facts, print_json, print_table, when

_LIST = (
    Column("id"),
    Column("state"),
    Column("agent"),
    Column("thread", left_out=5),
    Column("created", left_out=1),
    Column("took", right=True, left_out=2),
    Column("tokens", right=True, left_out=3),
    Column("cost", right=True, left_out=4),
)
_TIMELINE = (
    Column("step"),
    Column("tries", right=True, left_out=2),
    Column("at", right=True, left_out=1),
    Column("took", right=True),
    Column("tokens", right=True),
    Column("cost", right=True, left_out=3),
    Column("", left_out=4),
    Column("what", folds=True),
)
_BAR = 32
_COLORS = {
    run_pb2.STEP_KIND_RECALL: "cyan",
    run_pb2.STEP_KIND_MODEL_CALL: "green",
    run_pb2.STEP_KIND_TOOL_CALL: "magenta",
    run_pb2.STEP_KIND_STORE: "blue",
}
_STATES = {
    run_pb2.RUN_STATE_COMPLETED: "green",
    run_pb2.RUN_STATE_FAILED: "red",
    run_pb2.RUN_STATE_EXPIRED: "red",
    run_pb2.RUN_STATE_CANCELLED: "yellow",
}


def states_of(names: Sequence[str]) -> list[run_pb2.RunState.ValueType]:
    """States by the names that `show_list` shows. Raises BadParameter for one that is none."""
    known = {_name(value): value for value in run_pb2.RunState.values() if value}
    for name in names:
        if name.lower() not in known:
            raise typer.BadParameter(f"There is no state '{name}'. There are {', '.join(known)}.")
    return [known[name.lower()] for name in names]


def show_list(
    console: Console,
    calls: Calls,
    thread: str,
    states: Sequence[run_pb2.RunState.ValueType],
    limit: int,
    *,
    as_json: bool,
) -> None:
    """A row a run, newest first."""
    runs = list(_listed(calls, thread, states, limit))
    if as_json:
        for run in runs:
            print_json(run)
        return
    if not runs:
        console.print("There are none.")
        return
    print_table(console, _LIST, [_row(run) for run in runs])


def show(console: Console, run: run_pb2.Run, *, as_json: bool, whose: str = "") -> None:
    """A run, what it waits for, and the timeline of its steps; ``whose`` as in ``Transcript``."""
    if as_json:
        print_json(run)
        return
    console.print(Text.assemble(run.id, "  ", _shown_state(run.state)))
    print_facts(console, _facts(run))
    if run.steps:
        console.print()
        print_table(console, _TIMELINE, _timeline(run))
    for pending in run.waiting_for:
        console.print()
        _show_pending(console, run, pending, whose)


def the_approval(run: run_pb2.Run) -> str:
    """The only request that a run waits for an answer to. Raises Refused."""
    waiting = [pending.approval.approval_id for pending in run.waiting_for if pending.HasField("approval")]
    if not waiting:
        raise Refused(f"Run {run.id} waits for nobody's consent. See: janus run show {run.id}")
    if len(waiting) > 1:
        raise Refused(f"Run {run.id} waits for more than one consent; name one: {', '.join(waiting)}")
    return waiting[0]


def say_decision(
    console: Console, run: run_pb2.Run, decision: agent_pb2.ApprovalDecision.ValueType, *, as_json: bool = False
) -> None:
    """What was decided about a run. It goes on a moment later, so its state says nothing yet."""
    if as_json:
        print_json(run)
        return
    console.print(plain(f"{run.id}  {decision_word(decision)}"), highlight=False)


def say_state(console: Console, run: run_pb2.Run, *, as_json: bool = False) -> None:
    """A run in a line."""
    if as_json:
        print_json(run)
        return
    console.print(Text.assemble(run.id, "  ", _shown_state(run.state)))


def _listed(
    calls: Calls, thread: str, states: Sequence[run_pb2.RunState.ValueType], limit: int
) -> Iterator[run_pb2.Run]:
    token = ""
    while limit > 0:
        request = pb.ListRunsRequest(thread_id=thread, states=states, page_size=min(limit, 1_000), page_token=token)
        page = calls.unary("ListRuns", request)
        yield from page.runs
        limit -= len(page.runs)
        token = page.next_page_token
        if not token:
            return


def _row(run: run_pb2.Run) -> tuple[Text, ...]:
    usage = run.usage if run.HasField("usage") else None
    return (
        plain(run.id),
        _shown_state(run.state),
        plain(run.agent),
        plain(run.thread_id),
        Text(when(run.created_at)),
        Text(_took(run.started_at, run.ended_at) if run.HasField("started_at") else ""),
        Text(_tokens(usage)),
        Text(_cost(usage)),
    )


def _name(state: run_pb2.RunState.ValueType) -> str:
    return run_pb2.RunState.Name(state).removeprefix("RUN_STATE_").lower()


def _shown_state(state: run_pb2.RunState.ValueType) -> Text:
    return Text(_name(state), style=_STATES.get(state, "cyan"))


def _facts(run: run_pb2.Run) -> Iterator[tuple[str, Text]]:
    yield "agent", plain(f"{run.agent}, version {run.agent_version}")
    yield "thread", plain(run.thread_id)
    if run.parent_run_id:
        yield "started by", plain(run.parent_run_id)
    yield "created", plain(when(run.created_at))
    if run.HasField("started_at"):
        waited = _took(run.created_at, run.started_at)
        yield "started", plain(f"{when(run.started_at)}, {waited} later")
        yield "took", plain(_took(run.started_at, run.ended_at))
    if run.takeovers:
        yield "take-overs", plain(str(run.takeovers))
    if run.labels:
        yield "labels", plain(", ".join(f"{key}={value}" for key, value in sorted(run.labels.items())))
    if run.HasField("usage"):
        yield "tokens", plain(_tokens(run.usage))
        yield "cost", plain(_cost(run.usage))
    if run.HasField("error"):
        yield "error", plain(run.error.message)


def _timeline(run: run_pb2.Run) -> list[tuple[Text, ...]]:
    """A row a step: when it began, how long it took, its tries, tokens and cost, and where that lies in the run."""
    begin = _seconds(run.started_at)
    end = max([_end(step.ended_at) for step in run.steps] + [_end(run.ended_at)])
    span = max(end - begin, 1e-6)
    rows: list[tuple[Text, ...]] = []
    for step in run.steps:
        usage = step.usage if step.HasField("usage") else None
        color = "red" if step.HasField("error") else _COLORS.get(step.kind, "white")
        kind = run_pb2.StepKind.Name(step.kind).removeprefix("STEP_KIND_").lower().replace("_", " ")
        rows.append(
            (
                Text(f"{step.index} {kind}"),
                Text(str(step.attempts)),
                Text(f"+{max(0.0, _seconds(step.started_at) - begin):.2f} s"),
                Text(_took(step.started_at, step.ended_at)),
                Text(_tokens(usage)),
                Text(_cost(usage)),
                Text(_bar(step, begin, span), style=color),
                plain(step.error.message if step.HasField("error") else step.summary),
            )
        )
    return rows


def _bar(step: run_pb2.Step, begin: float, span: float) -> str:
    first = min(_BAR - 1, int((max(_seconds(step.started_at), begin) - begin) / span * _BAR))
    last = min(_BAR, max(first + 1, round((_end(step.ended_at) - begin) / span * _BAR)))
    return (" " * first + "█" * (last - first)).ljust(_BAR)


def _show_pending(console: Console, run: run_pb2.Run, pending: run_pb2.PendingCall, whose: str) -> None:
    until = f"until {when(pending.expires_at)}"
    match pending.WhichOneof("kind"):
        case "approval":
            asked = pending.approval
            console.print(plain(f"waits for consent, {until}: {asked.call.name} {asked.call.arguments_json}"))
            if asked.reason:
                console.print(plain(f"  {asked.reason}"))
            line = f"  janus run approve {run.id} {asked.approval_id}{whose} [--decline]"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        case "input":
            console.print(plain(f"waits for an answer, {until}: {pending.input.question}"))
            if not whose:
                # A chat is the development tenant's.
                line = f"  janus chat --resume --thread {run.thread_id}"
                console.print(line, markup=False, highlight=False, soft_wrap=True)
        case "tool":
            call = pending.tool.call
            console.print(plain(f"waits for its client, {until}: {call.name} {call.arguments_json}"))


def _tokens(usage: usage_pb2.Usage | None) -> str:
    if usage is None:
        return ""
    sent = usage.input_uncached_tokens + usage.cache_read_tokens + usage.cache_write_tokens
    about = "~" if usage.source == usage_pb2.USAGE_SOURCE_ESTIMATED else ""
    return f"{about}{sent} in, {about}{usage.output_tokens} out"


def _cost(usage: usage_pb2.Usage | None) -> str:
    if usage is None:
        return ""
    return f"${usage.cost_micro_usd / 1_000_000:.6f}" if usage.HasField("cost_micro_usd") else "unknown"


def _took(start: Timestamp, end: Timestamp) -> str:
    seconds = max(0.0, _end(end) - _seconds(start))
    return f"{seconds:.2f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


def _seconds(stamp: Timestamp) -> float:
    return stamp.seconds + stamp.nanos / 1e9


def _end(stamp: Timestamp) -> float:
    """A time; now for what has not ended."""
    return _seconds(stamp) if stamp.seconds else datetime.now(UTC).timestamp()
