"""What must hold of runs, threads and workers after it all; see docs/operations/faults.md."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import asyncpg
from tests.chaos import runs_audit
from tests.chaos.runs_model import Plan, PlannedCall
from tests.chaos.runs_people import Asked
from tests.fakes.orchestration_service import TERMINAL, assert_pairs, check, said

from janus_api.content.v1 import message_pb2 as content
from janus_api.orchestration.v1 import event_pb2

# Sent only when they are in the journal; the rest is said first and may be lost with an owner.
_COMMITTED_FIRST = {
    "run_queued",
    "run_started",
    "memory_recalled",
    "tool_call_requested",
    "tool_call_completed",
    "approval_requested",
    "approval_resolved",
    "message_committed",
    "attempt_restarted",
    *TERMINAL,
}
_ENDS = {"completed": "run_completed", "failed": "run_failed", "cancelled": "run_cancelled", "expired": "run_expired"}
# What a model may be told of a call whose worker was killed: of one that may be repeated, and of one that may not.
_LOST = ("vanished",)
_DECLINED = ("declined",)
# Of one whose run was cancelled.
_CUT = ("the run was cancelled before",)


@dataclass(frozen=True)
class Journalled:
    """A run as Postgres has it in the end."""

    state: str
    takeovers: int
    error: str
    events: Sequence[event_pb2.RunEvent]
    terminal: int
    steps: Sequence[asyncpg.Record]


async def journalled(connection: asyncpg.Connection) -> dict[str, Journalled]:
    """All runs."""
    events: dict[str, list[asyncpg.Record]] = {}
    for row in await connection.fetch("SELECT * FROM orchestration.event ORDER BY sequence"):
        events.setdefault(row["run_id"], []).append(row)
    steps: dict[str, list[asyncpg.Record]] = {}
    for row in await connection.fetch("SELECT * FROM orchestration.step ORDER BY index"):
        steps.setdefault(row["run_id"], []).append(row)
    found = {}
    for row in await connection.fetch("SELECT * FROM orchestration.run"):
        mine = events.get(row["id"], [])
        found[row["id"]] = Journalled(
            row["state"],
            row["takeovers"],
            repr(row["error"] or b""),
            [event_pb2.RunEvent.FromString(each["content"]) for each in mine],
            sum(each["terminal"] for each in mine),
            steps.get(row["id"], []),
        )
    return found


async def stores(connection: asyncpg.Connection) -> Iterable[str]:
    """What the triggers found, and what no run needs any more."""
    found = await runs_audit.findings(connection)
    for table in ("run_lease", "tool_dispatch"):
        left = await connection.fetch(f"SELECT run_id FROM orchestration.{table}")
        found += [f"{row['run_id']}: there is still a {table}" for row in left]
    return found


def runs(asked: Sequence[Asked], journal: dict[str, Journalled]) -> Iterator[str]:
    """Each run that was asked for is there once, has ended once, and was seen by all as it is journalled."""
    ids = Counter(each.run_id for each in asked)
    yield from (f"{run_id} is the run of {count} requests" for run_id, count in ids.items() if count > 1)
    yield from (f"{run_id} was asked for by nobody" for run_id in journal.keys() - ids.keys())
    yield from (f"{run_id} is lost" for run_id in ids.keys() - journal.keys())
    for each in asked:
        if (run := journal.get(each.run_id)) is None:
            continue
        for what in (*_events(each, run), *_steps(each.plan, run)):
            yield f"{each.run_id}: {what}"


def _events(asked: Asked, run: Journalled) -> Iterator[str]:
    durable = {event.cursor.sequence: event for event in run.events}
    if run.terminal != 1:
        yield f"{run.terminal} terminal events are journalled"
        return
    last = run.events[-1].WhichOneof("event")
    if last != _ENDS.get(run.state):
        yield f"it is {run.state}, and its last event is {last}"
    if run.state == "failed":
        yield f"it failed: {run.error}"
    if run.state in ("cancelled", "expired") and not asked.is_cancelled:
        yield f"it is {run.state}, and nobody asked for that"
    told: dict[int, event_pb2.RunEvent] = {}
    for number, seen in enumerate(asked.seen):
        try:
            check(seen, after=0)
        except AssertionError as gap:
            yield f"watcher {number}: {gap}"
        mine = {event.cursor.sequence: event for event in seen if not event.HasField("replay_compacted")}
        yield from (f"watcher {number} was not sent {at}" for at in durable.keys() - mine.keys())
        for at, event in mine.items():
            if told.setdefault(at, durable.get(at, event)) != event:
                yield f"watcher {number} was sent another event {at} than others or the journal"
            if at not in durable and event.WhichOneof("event") in _COMMITTED_FIRST:
                yield f"watcher {number} was sent {at}, {event.WhichOneof('event')}, which is not journalled"


def _steps(plan: Plan, run: Journalled) -> Iterator[str]:
    if [step["index"] for step in run.steps] != list(range(1, len(run.steps) + 1)):
        yield "its steps are not numbered in turn"
    if any(step["ended_at"] is None for step in run.steps):
        yield "it has a step that has not ended"
    kinds = Counter(step["kind"] for step in run.steps)
    calls = sum(len(calls) for calls in plan.calls)
    most = {"recall": 1, "model_call": len(plan.calls) + 1, "tool_call": calls, "store": 1}
    for kind, count in most.items():
        if kinds[kind] > count or (run.state == "completed" and kinds[kind] != count):
            yield f"{kinds[kind]} steps are {kind}, of {count}"
    completed = Counter(
        # The round of a call is in its id.
        event.tool_call_completed.result.call_id
        for event in run.events
        if event.HasField("tool_call_completed")
    )
    if completed.total() > len(completed):
        yield f"calls were completed more than once: {completed}"
    if run.state == "completed" and completed.total() != calls:
        yield f"{completed.total()} calls were completed, of {calls}"


def worker_logs(marks: Counter[str], asked: Sequence[Asked]) -> Iterator[str]:
    """What the workers wrote down for each time that a tool ran."""
    calls = {call.word: call for each in asked for round_ in each.plan.calls for call in round_}
    # By itself, or by somebody's word; once more by somebody's word.
    may_run = {word: each.may_run[word] + (not each.is_careful) for each in asked for word in words_of(each.plan)}
    keys: dict[str, set[str]] = {}
    for mark, count in marks.items():
        word, _, what = mark.partition("-")
        if (call := calls.get(word)) is None:
            yield f"a tool ran for {word}, which no model asked for"
        elif call.tool == "once" and count > may_run[word]:
            yield f"{word}, which may run {may_run[word]} times, has {what} {count} times"
        if what.startswith("key-"):
            keys.setdefault(word, set()).add(what)
    yield from (f"{word} came with {len(found)} idempotency keys" for word, found in keys.items() if len(found) > 1)


def words_of(plan: Plan) -> list[str]:
    return [call.word for calls in plan.calls for call in calls]


def thread(
    history: Sequence[content.Message], asked: Sequence[Asked], journal: dict[str, Journalled], marks: Counter[str]
) -> Iterator[str]:
    """A thread has what each run did, in their order, once; and no call without its result."""
    try:
        assert_pairs(history)
    except AssertionError:
        yield "there is a call without its result, or a result without its call"
        return
    turns: list[list[content.Message]] = []
    for message in history:
        if message.role == content.ROLE_USER:
            turns.append([])
        if not turns:
            yield "it does not begin with a user's message"
            return
        turns[-1].append(message)
    words = [Plan.read(said(turn[0])).word for turn in turns]
    expected = [each for each in asked if each.plan.word in words or journal[each.run_id].state == "completed"]
    if words != [each.plan.word for each in expected]:
        yield f"its turns are {words}, and should be {[each.plan.word for each in expected]}"
        return
    calls = [part.tool_call.call_id for turn in turns for m in turn for part in m.parts if part.HasField("tool_call")]
    yield from (f"the call id {one} comes {count} times" for one, count in Counter(calls).items() if count > 1)
    for each, turn in zip(expected, turns, strict=True):
        state = journal[each.run_id].state
        yield from (f"{each.run_id}: {what}" for what in _turn(each.plan, turn[1:], state == "completed", marks))
        events = journal[each.run_id].events
        told = [event.message_committed.message.id for event in events if event.HasField("message_committed")]
        if told != [message.id for message in turn]:
            yield f"{each.run_id}: it told of {len(told)} messages, and has {len(turn)}"


def _turn(plan: Plan, answers: Sequence[content.Message], is_whole: bool, marks: Counter[str]) -> Iterator[str]:
    """The answers of one run; of one that was cancelled or failed, as many as there are."""
    if is_whole and len(answers) != 2 * len(plan.calls) + 1:
        yield f"it has {len(answers)} messages, and should have {2 * len(plan.calls) + 1}"
        return
    for number, message in enumerate(answers):
        if number == 2 * len(plan.calls):
            if said(message) != "".join(plan.pieces):
                yield f"its answer is {said(message)!r}"
        elif number > 2 * len(plan.calls):
            yield "it has more messages than it should"
        elif number % 2 == 0:
            calls = [part.tool_call for part in message.parts if part.HasField("tool_call")]
            expected = [(call.id, call.tool, call.word) for call in plan.calls[number // 2]]
            # The model numbers its calls anew in each turn; in the conversation no id comes twice.
            found = [
                (call.call_id.partition("_")[0], call.name, json.loads(call.arguments_json)["word"]) for call in calls
            ]
            if found != expected:
                yield f"it asked for {found}, and should have for {expected}"
        else:
            results = [part.tool_result for part in message.parts]
            for call, result in zip(plan.calls[number // 2], results, strict=True):
                yield from _result(call, result, is_whole, marks)


def _result(call: PlannedCall, result: content.ToolResult, is_whole: bool, marks: Counter[str]) -> Iterator[str]:
    told = "".join(part.text for part in result.parts)
    if told.startswith(f"{call.word} is done"):
        if not marks[f"{call.word}-done"]:
            yield f"{call.word} is said to be done, and its worker knows nothing of it"
    elif not result.is_error or not any(
        words in told for words in (*(_DECLINED if call.tool == "once" else _LOST), *(() if is_whole else _CUT))
    ):
        yield f"{call.word} was answered {told!r}"
