"""Records on a terminal. What people wrote is shown as it is: no markup, no control characters."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import typer
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.text import Text

from janus_api.memory.v1 import filter_pb2, recall_pb2, record_pb2, scope_pb2
from janus_app.terminal import Column, plain, print_facts, print_json, print_table, when

_HITS = (
    Column("score"),
    Column("kind", left_out=2),
    Column("when", left_out=3),
    Column("who", left_out=1),
    Column("id"),
    Column("text", folds=True),
)
_VERSIONS = (
    Column("version"),
    Column("change"),
    Column("recorded", left_out=2),
    Column("by", left_out=3),
    Column("text", folds=True),
    Column("reason", folds=True, left_out=1),
)


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
        rows: list[tuple[Text, ...]] = []
        for hit in found.hits:
            rows.append(_hit(hit))
            if explain:
                rows.append((*[Text("")] * (len(_HITS) - 1), Text(_details(hit), style="dim")))
        print_table(console, _HITS, rows)
    if found.degraded:
        console.print(f"Without {', '.join(found.degraded)}, which did not answer.", style="yellow")


def show_memory(console: Console, memory: record_pb2.Memory, *, as_json: bool) -> None:
    """A row a field that is set."""
    if as_json:
        print_json(memory)
        return
    facts = []
    for field, value in memory.ListFields():
        shown = [value] if not field.is_repeated else list(value)
        facts.append((field.name, plain("\n".join(_shown(field.name, each) for each in shown))))
    print_facts(console, facts)


def show_history(console: Console, versions: Iterable[record_pb2.MemoryVersion], *, as_json: bool) -> None:
    """A row a version."""
    if as_json:
        for version in versions:
            print_json(version)
        return
    print_table(console, _VERSIONS, [_version(version) for version in versions])


def _shown(field: str, value: object) -> str:
    if isinstance(value, Timestamp):
        return when(value)
    if isinstance(value, Message):
        return json.dumps(json_format.MessageToDict(value, preserving_proto_field_name=True), ensure_ascii=False)
    if field == "kind" and isinstance(value, int):
        return record_pb2.MemoryKind.Name(record_pb2.MemoryKind.ValueType(value)).removeprefix("MEMORY_KIND_").lower()
    return str(value)


def _version(version: record_pb2.MemoryVersion) -> tuple[Text, ...]:
    memory = version.memory
    change = record_pb2.Change.Name(version.change).removeprefix("CHANGE_").lower()
    said = (version.changed_by, memory.text, version.reason)
    return (Text(str(memory.version)), Text(change), Text(when(memory.recorded_at)), *map(plain, said))


def _hit(hit: recall_pb2.RecallHit) -> tuple[Text, ...]:
    if hit.WhichOneof("record") == "turn":
        turn = hit.turn
        kind, at = "turn", turn.occurred_at
        said = " ".join(part.text for part in turn.message.parts if part.text)
        words = (turn.message.name, turn.message.id, said)
    else:
        memory = hit.memory
        kind = record_pb2.MemoryKind.Name(memory.kind).removeprefix("MEMORY_KIND_").lower()
        at = memory.valid_from if memory.HasField("valid_from") else memory.recorded_at
        words = (memory.scope.subject, memory.id, memory.text)
    return (Text(f"{hit.score:.3f}"), Text(kind), Text(when(at)), *map(plain, words))


def _details(hit: recall_pb2.RecallHit) -> str:
    return "  ".join(f"{each.leg} {each.contribution:+.3f}" for each in hit.details if each.contribution)
