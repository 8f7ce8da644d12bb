"""`janus memory` at a real mesh: what a person at a terminal, or a script, gets to see."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.system.driver import Server, eventually
from typer.testing import CliRunner, Result

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import record_pb2, scope_pb2
from janus_app.client import Mesh
from janus_app.commands import app
from janus_app.embedded import read_state


@pytest.fixture
def run(served: Server, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("JANUS_DATA", str(served.data))
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("JANUS_ADDRESS", "JANUS_CONFIG", "JANUS_POSTGRES_URL"):
        monkeypatch.delenv(name, raising=False)
    runner = CliRunner()

    def invoke(*arguments: str, code: int = 0, **options: Any) -> Result:
        result = runner.invoke(app, ["memory", *arguments], **options)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    return invoke


def remember(mesh: Mesh, tenant: str, *texts: str, **fields: Any) -> list[str]:
    request = pb.RememberRequest(
        scope=scope_pb2.Scope(subject=fields.pop("subject", "ada")),
        memories=[record_pb2.Memory(kind=record_pb2.MEMORY_KIND_FACT, text=text, **fields) for text in texts],
        consistency=scope_pb2.CONSISTENCY_READ_YOUR_WRITES,
    )
    answer = mesh.memory.Remember(request, metadata=[("janus-tenant", tenant)])
    return list(answer.memory_ids)


def test_what_was_remembered_is_found_shown_and_has_its_history(mesh: Mesh, run: Any) -> None:
    (heron, _) = remember(mesh, "cli-a", "Ada saw a heron at [red]the weir[/red].\x1b[2J", "Ada likes trains.")
    request = pb.UpdateMemoryRequest(
        memory=record_pb2.Memory(id=heron, text="Ada saw a grey heron at the weir."), reason="she looked again"
    )
    request.update_mask.paths.append("text")
    found = run("search", "heron", "--tenant", "cli-a", "--explain").stdout
    # What people wrote is text, and nothing that a terminal acts on.
    assert "[red]the weir[/red]" in found
    assert "\x1b" not in found
    assert "lexical_turn" in found
    assert heron in found
    mesh.memory.UpdateMemory(request, metadata=[("janus-tenant", "cli-a")])
    shown = run("show", heron, "--tenant", "cli-a").stdout
    assert "grey heron" in shown
    assert "fact" in shown
    rows = run("history", heron, "--tenant", "cli-a").stdout
    assert "created" in rows
    assert "updated" in rows
    assert "she looked again" in rows
    versions = [json.loads(line) for line in run("history", heron, "--tenant", "cli-a", "--json").stdout.splitlines()]
    assert [version["memory"]["version"] for version in versions] == ["1", "2"]
    hits = json.loads(run("search", "heron", "--tenant", "cli-a", "--kind", "fact", "--json").stdout)["hits"]
    assert hits[0]["memory"]["id"] == heron
    assert "Nothing was found" in run("search", "heron", "--tenant", "cli-nobody").stdout


def test_what_cannot_be_done_is_said_in_a_line(mesh: Mesh, run: Any) -> None:
    absent = run("show", "mem_absent", code=1)
    assert "NOT_FOUND" in absent.stderr
    assert "document_chunk" in run("search", "x", "--kind", "novel", code=2).stderr
    assert "no Filter" in run("search", "x", "--filter", "{", code=2).stderr
    assert "chroma" in run("reindex", "--backend", "paper", code=2).stderr
    assert "query" in run("search", "", code=1).stderr
    run("verify", "--space", "default", code=2)


def test_an_erasure_is_asked_for_and_receipted(mesh: Mesh, run: Any, tmp_path: Path) -> None:
    remember(mesh, "cli-e", "Bea keeps bees.", subject="bea")
    remember(mesh, "cli-e", "Ada counts bees.")
    run("erase", "bea", "--tenant", "cli-e", code=1, input="n\n")
    assert "Bea keeps" in run("search", "bees", "--tenant", "cli-e").stdout
    file = tmp_path / "receipt.json"
    told = run("erase", "bea", "--tenant", "cli-e", "--yes", "--receipt", str(file)).stdout
    assert "postgres.memory" in told
    assert "signed with the key ed25519:" in told
    kept = file.read_text()
    assert json.loads(kept)["key_id"].startswith("ed25519:")
    # An earlier receipt is evidence: it is not replaced unasked, and nothing is erased without another.
    remember(mesh, "cli-e", "Bea keeps bees again.", subject="bea")
    again = ("erase", "bea", "--tenant", "cli-e", "--yes", "--receipt", str(file))
    assert "is there already; --force replaces it" in run(*again, code=1).stderr
    assert "Bea keeps" in run("search", "bees", "--tenant", "cli-e").stdout
    assert file.read_text() == kept
    run(*again, "--force")
    assert json.loads(file.read_text())["id"] != json.loads(kept)["id"]
    left = run("search", "bees", "--tenant", "cli-e").stdout
    assert "Bea keeps" not in left
    assert "Ada counts" in left


def test_the_stores_of_the_running_mesh_are_compared(mesh: Mesh, run: Any) -> None:
    remember(mesh, "cli-v", "Cleo keeps accounts.")
    rows = run("verify", "--tenant", "cli-v").stdout.splitlines()
    assert rows[0].split()[:3] == ["tenant", "space", "backend"]
    assert rows[1].split()[:3] == ["cli-v", "default", "pgvector"]


def test_an_export_comes_back_elsewhere_and_is_refused_when_it_is_not_whole(
    mesh: Mesh, run: Any, tmp_path: Path
) -> None:
    remember(mesh, "cli-x", "Dora draws doors.", "Dora drinks dew.", subject="dora")
    file = tmp_path / "dora.export"
    told = run("export", str(file), "--tenant", "cli-x", "--subject", "dora", "--history").stderr
    assert "3 records" in told
    assert "--force" in run("export", str(file), "--tenant", "cli-x", code=1).stderr
    assert "3 stored" in run("import", str(file), "--tenant", "cli-y").stderr
    assert "3 were there" in run("import", str(file), "--tenant", "cli-y").stderr
    assert "Dora draws" in run("search", "doors", "--tenant", "cli-y").stdout
    whole = file.read_bytes()
    for broken, said in ((whole[:-5], "cut off"), (whole[:22], "not whole"), (b"hello", "is not what")):
        file.write_bytes(broken)
        assert said in run("import", str(file), "--tenant", "cli-z", code=1).stderr
    assert [each.name for each in tmp_path.iterdir()] == ["dora.export"]


def test_a_space_moves_to_another_backend_and_what_came_of_it_is_shown(mesh: Mesh, run: Any) -> None:
    remember(mesh, "cli-r", "Finn finds flint.", "Gus gathers gorse.")
    told = run("reindex", "--backend", "chroma", "--tenant", "cli-r").stdout
    assert "succeeded: 2 of 2" in told
    assert "backend: chroma" in told
    assert "Finn finds" in run("search", "flint", "--tenant", "cli-r").stdout
    started = run("reindex", "--dimensions", "64", "--no-wait", "--tenant", "cli-r").stdout.strip()
    assert "dimensions: 64" in run("operation", started, "--tenant", "cli-r").stdout
    # It has ended, so there is nothing to cancel.
    assert "succeeded" in run("operation", started, "--cancel", "--no-wait", "--tenant", "cli-r").stdout
    assert "NOT_FOUND" in run("operation", "op_absent", "--tenant", "cli-r", code=1).stderr
    rows = run("verify", "--tenant", "cli-r").stdout.splitlines()
    assert rows[1].split()[:3] == ["cli-r", "default", "chroma"]


def test_what_could_not_be_indexed_is_shown_with_its_reason_and_replayed(mesh: Mesh, run: Any, served: Server) -> None:
    remember(mesh, "cli-d", "Hal hums hymns.")
    state = read_state(served.data)
    assert state is not None

    async def give_up() -> None:
        # As after a model that refused it eight times.
        owner = await asyncpg.connect(state.postgres_url)
        try:
            await owner.execute(
                """INSERT INTO memory.outbox (tenant, space_no, unit, counted, attempts, error, dead_at)
                   SELECT tenant, space_no, unit, true, 8, 'the model [red]refuses[/red] it', now()
                   FROM memory.unit WHERE tenant = 'cli-d'"""
            )
        finally:
            await owner.close()

    asyncio.run(give_up())
    told = run("dead-letters").stdout
    assert "cli-d" in told
    assert "the model [red]refuses[/red] it" in told
    assert "There are none" in run("dead-letters", "--tenant", "cli-other").stdout
    assert (
        "space 'absent' was not found" in run("dead-letters", "--tenant", "cli-d", "--space", "absent", code=1).stderr
    )
    run("dead-letters", "--space", "default", code=2)
    assert "1 replayed" in run("dead-letters", "--tenant", "cli-d", "--space", "default", "--replay").stdout

    def settled() -> bool:
        answer = mesh.memory.GetSpace(pb.GetSpaceRequest(), metadata=[("janus-tenant", "cli-d")])
        return answer.space.index_backlog == 0

    eventually(settled)
    assert "There are none" in run("dead-letters", "--tenant", "cli-d").stdout


def test_a_file_that_cannot_be_written_is_named_before_anything_is_done(mesh: Mesh, run: Any, tmp_path: Path) -> None:
    remember(mesh, "cli-n", "Nora nets newts.", subject="nora")
    nowhere = tmp_path / "nowhere"
    for file, said in (
        (nowhere / "out", f"The folder {nowhere} does not exist"),
        (tmp_path, f"{tmp_path} is a folder"),
    ):
        for command in (["export", str(file), "--force"], ["erase", "nora", "--yes", "--receipt", str(file)]):
            told = " ".join(run(*command, "--tenant", "cli-n", code=1).stderr.split())
            assert said in told
            assert "partial" not in told
    assert "Nora nets" in run("search", "newts", "--tenant", "cli-n").stdout
    assert not list(tmp_path.iterdir())


def test_without_a_mesh_it_is_said_how_to_start_one(run: Any, tmp_path: Path) -> None:
    for command in (
        ["search", "x"],
        ["verify"],
        ["dead-letters"],
        ["operation", "op_x"],
        ["export", str(tmp_path / "out")],
    ):
        assert "janus serve" in run(*command, "--data", str(tmp_path / "empty"), code=1).stderr
    assert not (tmp_path / "out").exists()
