"""Rows of Postgres as the model's nouns, and back."""

import json
from dataclasses import asdict, fields
from datetime import timedelta
from functools import lru_cache
from typing import Any

from janus_orchestration.model import (
    Agent,
    AgentSpec,
    AgentTool,
    ApprovalPolicy,
    Budgets,
    Cursor,
    DoubleTexting,
    MemoryPolicy,
    Message,
    Pending,
    PendingKind,
    RecallScope,
    Recorded,
    Removal,
    Role,
    Run,
    RunOptions,
    RunState,
    SideEffect,
    Step,
    StepKind,
    StoreDebt,
    Thread,
    ThreadMessage,
    Tool,
    ToolCall,
    Usage,
    Verdict,
    WhenNoWorker,
)

Row = Any  # asyncpg.Record, which is untyped

_OF_USAGE = tuple(each.name for each in fields(Usage))

THREAD_COLUMNS = (
    "id, agent, subject, title, metadata, created_at, updated_at, last_position, memory_position, active_run, "
    "forked_from, forked_at, parent_run"
)
RUN_COLUMNS = (
    "id, thread_id, agent, agent_version, state, options, subject, cancel_on_disconnect, parent_run, epoch, "
    "revision, last_sequence, reserved_sequence, stream_broken, takeovers, created_at, started_at, ended_at, "
    "usage, finish_reason, error, cancel_reason, rolls_back, waited_s, waiting_since"
)
MESSAGE_COLUMNS = "id, role, name, text, content, position, run_id, is_output"
_ROLES = {role.value: role for role in Role}
_MOST_REMEMBERED_CHARS = 65_536
PENDING_COLUMNS = (
    "id, step, kind, call_id, tool, arguments, arguments_sha256, is_retry, text, schema, expires_at, on_expiry, "
    "child_run, verdict, answer, answered_by, answered_at, is_taken"
)


def parts(row: Row, *columns: str) -> list[dict[str, Any]]:
    """A row of several tables, one after the other, as a row of each; their columns may have the same names."""
    found, first = [], 0
    for names in (each.split(", ") for each in columns):
        found.append(dict(zip(names, row[first : first + len(names)], strict=True)))
        first += len(names)
    return found


def usage_to(usage: Usage | None) -> str | None:
    """JSON of a usage."""
    return None if usage is None else json.dumps({name: getattr(usage, name) for name in _OF_USAGE})


def usage_from(text: str | None) -> Usage | None:
    return None if text is None else Usage(**json.loads(text))


def spec_to(spec: AgentSpec) -> str:
    """JSON of an agent's specification. Durations are seconds, bytes hexadecimal."""
    value = asdict(spec)
    value["sampling"] = spec.sampling.hex()
    value["reasoning"] = spec.reasoning.hex()
    if spec.budgets is not None:
        value["budgets"] = _budgets_to(spec.budgets)
    for tool in value["tools"]:
        tool["timeout"] = _seconds(tool["timeout"])
    if spec.approval is not None:
        value["approval"]["expires_after"] = _seconds(spec.approval.expires_after)
    return json.dumps(value)


def spec_from(text: str) -> AgentSpec:
    """What JSON of ``spec_to`` says; most runs are of an agent that another was of a moment ago."""
    return (_remembered if len(text) <= _MOST_REMEMBERED_CHARS else _parsed)(text)


def _parsed(text: str) -> AgentSpec:
    value = json.loads(text)
    memory = value["memory"]
    memory["recall_scope"] = RecallScope(memory["recall_scope"])
    value["memory"] = MemoryPolicy(**memory)
    value["sampling"] = bytes.fromhex(value["sampling"])
    value["reasoning"] = bytes.fromhex(value["reasoning"])
    value["budgets"] = _budgets_from(value["budgets"])
    value["double_texting"] = DoubleTexting(value["double_texting"]) if value["double_texting"] else None
    value["tools"] = tuple(map(_tool_from, value.get("tools", ())))
    value["approval"] = _approval_from(value.get("approval"))
    for name in ("handoffs", "sub_agents"):
        value[name] = tuple(value.get(name, ()))
    return AgentSpec(**value)


# A specification is never changed, and says nothing about whose it is.
_remembered = lru_cache(maxsize=256)(_parsed)


def _tool_from(value: dict[str, Any]) -> AgentTool:
    when = value["when_no_worker"]
    timeout = _duration(value["timeout"])
    return AgentTool(**{**value, "when_no_worker": WhenNoWorker(when) if when else None, "timeout": timeout})


def _approval_from(value: dict[str, Any] | None) -> ApprovalPolicy | None:
    if value is None:
        return None
    decision = value["on_expiry"]
    return ApprovalPolicy(
        tuple(value["tools"]), _duration(value["expires_after"]), Verdict(decision) if decision else None
    )


def options_to(options: RunOptions) -> str:
    return json.dumps(
        {
            "model": options.model,
            "budgets": _budgets_to(options.budgets) if options.budgets else None,
            "labels": dict(options.labels),
        }
    )


def options_from(text: str) -> RunOptions:
    value = json.loads(text)
    return RunOptions(value["model"], _budgets_from(value["budgets"]), tuple(sorted(value["labels"].items())))


def _budgets_to(budgets: Budgets) -> dict[str, Any]:
    return {**asdict(budgets), "max_wall_time": _seconds(budgets.max_wall_time)}


def _budgets_from(value: dict[str, Any] | None) -> Budgets | None:
    return None if value is None else Budgets(**{**value, "max_wall_time": _duration(value["max_wall_time"])})


def _seconds(duration: timedelta | None) -> float | None:
    return None if duration is None else duration.total_seconds()


def _duration(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


def agent_from(row: Row) -> Agent:
    return Agent(spec_from(row["spec"]), row["version"], row["created_at"])


def thread_from(row: Row) -> Thread:
    return Thread(
        id=row["id"],
        agent=row["agent"],
        subject=row["subject"],
        title=row["title"],
        metadata_json=row["metadata"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        last_position=row["last_position"],
        memory_position=row["memory_position"],
        active_run=row["active_run"] or "",
        forked_from=row["forked_from"],
        forked_at=row["forked_at"],
        parent_run=row["parent_run"] or "",
    )


def message_from(row: Row) -> ThreadMessage:
    """Of ``MESSAGE_COLUMNS``, and what else there is after them.

    ``text`` and ``name`` come from columns, so that no wire form is decoded for them.
    """
    message_id, role, name, text, wire, position, run_id, is_output, *_ = row
    return ThreadMessage(Message(message_id, _ROLES[role], text, wire, name), position or 0, run_id or "", is_output)


def run_from(row: Row) -> Run:
    return Run(
        id=row["id"],
        thread_id=row["thread_id"],
        agent=row["agent"],
        agent_version=row["agent_version"],
        state=RunState(row["state"]),
        options=options_from(row["options"]),
        subject=row["subject"],
        cancel_on_disconnect=row["cancel_on_disconnect"],
        parent_run=row["parent_run"] or "",
        epoch=row["epoch"],
        revision=row["revision"],
        last_sequence=row["last_sequence"],
        reserved_sequence=row["reserved_sequence"],
        stream_broken=row["stream_broken"],
        takeovers=row["takeovers"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        usage=usage_from(row["usage"]),
        finish_reason=row["finish_reason"],
        error=row["error"] or b"",
        cancel_reason=row["cancel_reason"],
        rolls_back=row["rolls_back"],
        waited=timedelta(seconds=row["waited_s"]),
        waiting_since=row["waiting_since"],
    )


def step_from(row: Row) -> Step:
    return Step(
        index=row["index"],
        kind=StepKind(row["kind"]),
        attempts=row["attempts"],
        after=Cursor(row["after_epoch"], row["after_sequence"]),
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        usage=usage_from(row["usage"]),
        error=row["error"] or b"",
        summary=row["summary"],
    )


def event_from(row: Row) -> Recorded:
    return Recorded(
        Cursor(row["epoch"], row["sequence"]), row["kind"], row["content"], durable=True, terminal=row["terminal"]
    )


def pending_from(row: Row) -> Pending:
    return Pending(
        id=row["id"],
        step=row["step"],
        kind=PendingKind(row["kind"]),
        call=ToolCall(row["call_id"], row["tool"], row["arguments"]),
        arguments_sha256=row["arguments_sha256"],
        expires_at=row["expires_at"],
        on_expiry=Verdict(row["on_expiry"]),
        is_retry=row["is_retry"],
        text=row["text"],
        schema_json=row["schema"],
        child_run=row["child_run"] or "",
        verdict=Verdict(row["verdict"]) if row["verdict"] else None,
        answer=row["answer"] or b"",
        answered_by=row["answered_by"],
        in_time=row["answered_at"] is not None,
        is_taken=row["is_taken"],
    )


def debt_from(row: Row) -> StoreDebt:
    return StoreDebt(
        row["thread_id"],
        row["from_position"],
        row["to_position"],
        row["run_id"],
        row["space"],
        row["extract"],
        row["subject"],
    )


def removal_from(row: Row) -> Removal:
    return Removal(row["id"], row["thread_id"], row["space"], tuple(row["message_ids"]), row["attempts"])


def tool_from(row: Row) -> Tool:
    return Tool(
        name=row["name"],
        description=row["description"],
        schema_json=row["schema"],
        side_effect=SideEffect(row["side_effect"]),
        timeout=timedelta(seconds=row["timeout_s"]),
    )
