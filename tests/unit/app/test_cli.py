"""The `janus` command where no mesh is needed: what it says when something is missing or wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from janus_app.commands import app

KEY = "sk-never-to-be-printed"


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "JANUS_CONFIG", "JANUS_SECRETS_DIR", "JANUS_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JANUS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "200")
    return CliRunner()


def test_version_names_the_distribution(runner: CliRunner) -> None:
    result = runner.invoke(app, ["version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("janus 0.")


def test_a_ctrl_c_while_the_command_loads_ends_it_quietly() -> None:
    interrupted = """
import os, signal, sys
class Interrupts:
    def find_spec(self, name, *_):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
from janus_app.cli import main
main()
"""
    left = subprocess.run([sys.executable, "-c", interrupted], capture_output=True, text=True, timeout=60, check=False)
    assert (left.returncode, left.stdout, left.stderr) == (130, "", "")


def test_a_command_that_is_called_in_a_wrong_way_exits_with_2(runner: CliRunner) -> None:
    for command, told in (
        (["run", "list", "--nonsense"], "--nonsense"),
        (["run", "list", "--state", "running", "--state", "lazy"], "There is no state 'lazy'. There are queued,"),
        (["run", "start", "hi", "--label", "team"], "'team' is no label"),
        (["run", "show"], "Missing argument"),
        (["memory", "search", "x", "--limit", "0"], "--limit"),
        (["memory", "search", "x", "--kind", "novel"], "There is no kind 'novel'"),
        (["memory", "search", "x", "--filter", "{}"], "names no condition"),
        (["memory", "reindex", "--backend", "paper"], "There is no backend 'paper'"),
    ):
        result = runner.invoke(app, command)
        assert (result.exit_code, told in result.stderr) == (2, True), result.output


@pytest.mark.parametrize("command", [["chat"], ["chat", "--address", "127.0.0.1:1"]])
def test_without_a_mesh_the_user_is_told_how_to_start_one(runner: CliRunner, command: list[str]) -> None:
    result = runner.invoke(app, command)
    assert result.exit_code == 1
    assert "janus serve" in result.stderr
    assert "Traceback" not in result.output


def test_config_show_masks_secrets_and_says_where_values_come_from(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "janus.yaml"
    file.write_text("server:\n  drain_s: 7\n")
    monkeypatch.setenv("JANUS_TELEMETRY__LOG_LEVEL", "debug")
    monkeypatch.setenv("JANUS_POSTGRES_URL", f"postgresql://me:{KEY}@db/janus")
    result = runner.invoke(app, ["config", "show", "--config", str(file)])
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert "7" in rows["server.drain_s"].split()[1]
    assert rows["server.drain_s"].rstrip().endswith("file")
    assert "JANUS_TELEMETRY__LOG_LEVEL" in rows["telemetry.log_level"]
    assert "JANUS_POSTGRES_URL" in rows["postgres.url"]
    assert KEY not in result.output


def test_a_misspelt_setting_is_an_error_that_names_the_nearest(runner: CliRunner, tmp_path: Path) -> None:
    file = tmp_path / "janus.yaml"
    file.write_text("server:\n  lissten: 127.0.0.1:1\n")
    for command in (["config", "show"], ["serve"]):
        result = runner.invoke(app, [*command, "--config", str(file)])
        assert result.exit_code == 1
        assert "server.lissten" in result.stderr
        assert "did you mean 'listen'" in result.stderr


def test_serve_refuses_a_service_that_does_not_exist(runner: CliRunner) -> None:
    result = runner.invoke(app, ["serve", "--only", "memory,telepathy"])
    assert result.exit_code == 2
    assert "telepathy" in result.stderr
    assert "inference, memory, orchestration, edge" in result.stderr


def test_serve_refuses_an_address_that_others_reach(runner: CliRunner) -> None:
    result = runner.invoke(app, ["serve", "--only", "inference", "--listen", "0.0.0.0:0"])
    assert result.exit_code == 1
    assert "refusing to listen on 0.0.0.0:0" in result.stderr


def test_doctor_without_a_mesh_checks_what_it_would_use(runner: CliRunner) -> None:
    result = runner.invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    for line in ("postgres", "redis", "chroma"):
        assert any(line in row and "embedded" in row for row in result.stdout.splitlines()), line
    # A line each where it is read by a program.
    (mesh,) = (row for row in result.stdout.splitlines() if " mesh " in row)
    assert "not running" in mesh
    assert "--address HOST:PORT" in mesh


def test_config_show_has_a_line_for_each_setting(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    models = json.dumps([f"a-model-with-a-long-name-{number}" for number in range(20)])
    monkeypatch.setenv("JANUS_INFERENCE__PROVIDERS__MINE__KIND", "openai")
    monkeypatch.setenv("JANUS_INFERENCE__PROVIDERS__MINE__MODELS", models)
    result = runner.invoke(app, ["config", "show"])
    assert result.exit_code == 0, result.output
    (line,) = (row for row in result.stdout.splitlines() if row.startswith("inference.providers.mine.models"))
    assert "a-model-with-a-long-name-0" in line
    assert "a-model-with-a-long-name-19" in line


def test_doctor_fails_when_a_configured_store_does_not_answer(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JANUS_POSTGRES_URL", f"postgresql://me:{KEY}@127.0.0.1:1/janus")
    result = runner.invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "JANUS_POSTGRES_URL" in result.stdout
    assert KEY not in result.output
