"""Records on a terminal. What people wrote is shown as it is: no markup, no control characters."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import typer
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from rich.text import Text

from janus_api.memory.v1 import filter_pb2, recall_pb2, record_pb2, scope_pb2
from janus_app.terminal import plain, print_json, when


def recall_request(
    query: str,
    space: str,
    subject: str,
    agent: str,
    thread: str,
    kinds: Sequence[str],
    limit: int,
    where: str | None,
    explain: bool,
) -> recall_pb2.RecallRequest:
    """Raises BadParameter for a kind or filter that is none."""
    request = recall_pb2.RecallRequest(
        scope=scope_pb2.Scope(space=space, subject=subject, agent=agent, thread=thread),
        query=query,
        limit=limit,
        explain=explain,
    )
    known = {name.removeprefix("RECORD_KIND_").lower(): value for name, value in recall_pb2.RecordKind.items() if value}
    for kind in kinds:
        if kind not in known:
            raise typer.BadParameter(f"There is no kind '{kind}'. There are {', '.join(known)}.")
        request.kinds.append(recall_pb2.RecordKind.ValueType(known[kind]))
    if where is not None:
        request.filter.CopyFrom(_filter(where))
    return request


def _filter(text: str) -> filter_pb2.Filter:
    """A filter that names a condition: one that names none would be no filter at all. Raises BadParameter."""
    try:
        value = json.loads(text)
        # protobuf takes an empty list and an empty text for an empty message.
        if not isinstance(value, dict):
            raise typer.BadParameter("The filter is no Filter of the contract: it must be a JSON object.")
        # The text, not the value: it tells keys that stand twice.
        found: filter_pb2.Filter = json_format.Parse(text, filter_pb2.Filter())
    except (ValueError, RecursionError, json_format.ParseError) as error:
        raise typer.BadParameter(f"The filter is no Filter of the contract: {error}") from None
    if found.WhichOneof("node") is None:
        names = ", ".join(field.json_name for field in found.DESCRIPTOR.fields)
        raise typer.BadParameter(f"The filter names no condition. There are {names}.")
    return found


def show_hits(console: Console, found: recall_pb2.RecallResponse, *, explain: bool, as_json: bool) -> None:
    """A row a hit, best first."""
    if as_json:
        print_json(found)
        return
    if not found.hits:
        console.print("Nothing was found.")
    else:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in ("score", "kind", "when", "who"):
            table.add_column(name, no_wrap=True)
        table.add_column("text", overflow="fold", ratio=1)
        table.add_column("id", overflow="fold")
        for hit in found.hits:
            table.add_row(f"{hit.score:.3f}", *_hit(hit))
            if explain:
                table.add_row("", "", "", "", Text(_details(hit), style="dim"), "")
        console.print(table)
    if found.degraded:
        console.print(f"Without {', '.join(found.degraded)}, which did not answer.", style="yellow")


def show_memory(console: Console, memory: record_pb2.Memory, *, as_json: bool) -> None:
    """A row a field that is set."""
    if as_json:
        print_json(memory)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for field, value in memory.ListFields():
        shown = [value] if not field.is_repeated else list(value)
        table.add_row(field.name, plain("\n".join(_shown(field.name, each) for each in shown)))
    console.print(table)


def show_history(console: Console, versions: Iterable[record_pb2.MemoryVersion], *, as_json: bool) -> None:
    """A row a version."""
    if as_json:
        for version in versions:
            print_json(version)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("version", "change", "recorded", "by"):
        table.add_column(name, no_wrap=True)
    table.add_column("text", overflow="fold", ratio=1)
    table.add_column("reason", overflow="fold")
    for version in versions:
        memory = version.memory
        change = record_pb2.Change.Name(version.change).removeprefix("CHANGE_").lower()
        table.add_row(
            str(memory.version),
            change,
            when(memory.recorded_at),
            plain(version.changed_by),
            plain(memory.text),
            plain(version.reason),
        )
    console.print(table)


def _shown(field: str, value: object) -> str:
    if isinstance(value, Timestamp):
        return when(value)
    if isinstance(value, Message):
        return json.dumps(json_format.MessageToDict(value, preserving_proto_field_name=True), ensure_ascii=False)
    if field == "kind" and isinstance(value, int):
        return record_pb2.MemoryKind.Name(record_pb2.MemoryKind.ValueType(value)).removeprefix("MEMORY_KIND_").lower()
    return str(value)


def _hit(hit: recall_pb2.RecallHit) -> tuple[str, str, Text, Text, Text]:
    if hit.WhichOneof("record") == "turn":
        turn = hit.turn
        said = " ".join(part.text for part in turn.message.parts if part.text)
        return "turn", when(turn.occurred_at), plain(turn.message.name), plain(said), plain(turn.message.id)
    memory = hit.memory
    kind = record_pb2.MemoryKind.Name(memory.kind).removeprefix("MEMORY_KIND_").lower()
    who = memory.scope.subject
    at = memory.valid_from if memory.HasField("valid_from") else memory.recorded_at
    return kind, when(at), plain(who), plain(memory.text), plain(memory.id)


def _details(hit: recall_pb2.RecallHit) -> str:
    return "  ".join(f"{each.leg} {each.contribution:+.3f}" for each in hit.details if each.contribution)
