"""Tables of `janus memory` where there is no terminal, and on a narrow one: ids and names are whole."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from janus_api.content.v1 import message_pb2 as content
from janus_api.memory.v1 import recall_pb2, record_pb2, scope_pb2
from janus_app.memory import records, upkeep
from janus_memory.ports import DeadLetters
from janus_memory.reconciliation import Findings

TENANT = "cli-imported-from-the-old-house-of-the-customer"
SPACE = "default-of-the-second-department"
ID = "mem_01m8hakwrxe32dmfwyv5kzq1vm"
MESSAGE = "message-of-the-client-" + "0123456789" * 6
SUBJECT = "ada.lovelace@analytical-engines.example"
ENVIRON = {"JANUS_POSTGRES_URL": "postgresql://nobody@127.0.0.1:1/janus"}
TEXT = "Ada saw a heron.\n\tIt stood at the weir, " + "and stood, " * 12 + "and flew."


def memory() -> record_pb2.Memory:
    made = record_pb2.Memory(id=ID, kind=record_pb2.MEMORY_KIND_FACT, text=TEXT, version=12)
    made.scope.CopyFrom(scope_pb2.Scope(subject=SUBJECT))
    made.recorded_at.FromSeconds(1_700_000_000)
    return made


def hits() -> recall_pb2.RecallResponse:
    turn = record_pb2.Turn(message=content.Message(id=MESSAGE, name=SUBJECT, parts=[content.Part(text=TEXT)]))
    detail = recall_pb2.ScoreDetail(leg="lexical_turn", contribution=0.5)
    return recall_pb2.RecallResponse(
        hits=[
            recall_pb2.RecallHit(score=0.75, memory=memory(), details=[detail]),
            recall_pb2.RecallHit(score=0.5, turn=turn, details=[detail]),
        ]
    )


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores with a space and a dead letter, that nobody has to start."""
    found = Findings(TENANT, SPACE, "pgvector", units=1_000_000)
    letter = DeadLetters(TENANT, SPACE, reason=TEXT, rows=3, oldest=datetime(2023, 11, 14, tzinfo=UTC))

    async def compare(*arguments: Any, **options: Any) -> AsyncIterator[Findings]:
        yield found

    class Replay:
        def __init__(self, records: Any) -> None:
            pass

        async def reasons(self, tenant: str, space: str) -> list[Any]:
            return [letter]

    @asynccontextmanager
    async def database(*arguments: Any, **options: Any) -> AsyncIterator[None]:
        await asyncio.sleep(0)
        yield

    monkeypatch.setenv("JANUS_POSTGRES_URL", ENVIRON["JANUS_POSTGRES_URL"])
    monkeypatch.setattr("janus_memory.verify.verify", compare)
    monkeypatch.setattr("janus_memory.dead_letters.Replay", Replay)
    monkeypatch.setattr("janus_kit.postgres.database", database)


def shown(what: str, folder: Path, *, width: int = 80, terminal: bool = False) -> str:
    screen = io.StringIO()
    console = Console(file=screen, width=width, force_terminal=terminal, color_system=None)
    match what:
        case "hits":
            records.show_hits(console, hits(), explain=False, as_json=False)
        case "explained":
            records.show_hits(console, hits(), explain=True, as_json=False)
        case "history":
            version = record_pb2.MemoryVersion(memory=memory(), change=record_pb2.CHANGE_CREATED)
            version.changed_by, version.reason = SUBJECT, TEXT
            records.show_history(console, [version], as_json=False)
        case "verify":
            upkeep.verify(console, folder, None, ENVIRON, "", "", repair=False)
        case "letters":
            upkeep.dead_letters(console, folder, None, ENVIRON, "", "", replay=False)
    return screen.getvalue()


LINES = {
    "hits": [[ID, SUBJECT, "fact", "0.750"], [MESSAGE, SUBJECT, "turn", "0.500"]],
    "explained": [[ID], ["lexical_turn +0.500"], [MESSAGE], ["lexical_turn +0.500"]],
    "history": [["12", "created", "2023-11-14 22:13:20", SUBJECT]],
    "verify": [[TENANT, SPACE, "pgvector", "1000000"]],
    "letters": [[TENANT, SPACE, "3", "2023-11-14 00:00:00"]],
}
TEXTS = {"hits": 1, "history": 2, "letters": 1}


@pytest.mark.parametrize("what", LINES)
@pytest.mark.usefixtures("stores")
def test_a_row_is_a_line_with_all_there_is_in_a_pipe(what: str, tmp_path: Path) -> None:
    (_, *rows) = shown(what, tmp_path).splitlines()
    assert len(rows) == len(LINES[what])
    for row, words in zip(rows, LINES[what], strict=True):
        assert all(word in row for word in words)
        if what in TEXTS:
            assert " ".join(row.split()).count(" ".join(TEXT.split())) == TEXTS[what]


@pytest.mark.parametrize("what", LINES)
@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.usefixtures("stores")
def test_ids_and_names_are_whole_on_a_narrow_terminal(what: str, width: int, tmp_path: Path) -> None:
    told = shown(what, tmp_path, width=width, terminal=True)
    assert "…" not in told
    for name in (ID, MESSAGE, TENANT, SPACE):
        if any(name in words for words in LINES[what]):
            assert name in told


def test_one_memory_is_shown_whole_in_a_pipe() -> None:
    screen = io.StringIO()
    made = memory()
    made.provenance.add(message_id=MESSAGE, quote="a heron " * 40)
    records.show_memory(Console(file=screen, width=80), made, as_json=False)
    (line,) = (each for each in screen.getvalue().splitlines() if each.startswith("provenance"))
    assert MESSAGE in line
    assert "a heron " * 40 in line
    # The lines of a text stay lines.
    assert "Ada saw a heron.\n" in "\n".join(each.rstrip() for each in screen.getvalue().splitlines())
