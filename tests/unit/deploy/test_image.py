"""The Dockerfile as a file. No engine builds it here."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

INSTRUCTION = re.compile(r"^([A-Z]+)\s+(.*)$", re.DOTALL)


@pytest.fixture
def dockerfile(deploy: Path) -> list[tuple[str, str]]:
    """Its instructions, continuation lines joined, comments left out."""
    lines = (deploy / "docker/Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    found = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if line.strip():
            match = INSTRUCTION.match(line)
            assert match is not None, line
            found.append((match[1], match[2].strip()))
    return found


def last_stage(dockerfile: list[tuple[str, str]]) -> list[tuple[str, str]]:
    start = max(index for index, (word, _) in enumerate(dockerfile) if word == "FROM")
    return dockerfile[start:]


def test_bases_are_pinned_and_uv_is_the_one_of_the_lock(dockerfile: list[tuple[str, str]], lock: dict[str, str]):
    bases = [rest.split()[0] for word, rest in dockerfile if word == "FROM"]
    assert bases == [f"ghcr.io/astral-sh/uv:{lock['uv']}", "python:3.13-slim", "python:3.13-slim"]


def test_packages_are_installed_by_the_lock_and_nothing_else(dockerfile: list[tuple[str, str]], root: Path):
    commands = [rest for word, rest in dockerfile if word == "RUN"]
    syncs = [command for command in commands if "uv sync" in command]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for sync in syncs:
        assert "--locked" in sync
        assert "--mount=type=cache" in sync
        assert re.findall(r"--extra (\w+)", sync) == [
            "inference",
            "memory",
            "orchestration",
            "mcp",
            "onnx",
            "edge",
            "telemetry",
        ]
        assert set(re.findall(r"--extra (\w+)", sync)) <= set(extras)
    assert len(syncs) == 2
    for command in commands:
        assert not re.search(r"pip install|apt-get|curl|wget", command)


def test_what_is_copied_exists_and_is_let_through(dockerfile: list[tuple[str, str]], root: Path):
    allowed = [line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for word, rest in dockerfile:
        assert word != "ADD"
        if word == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert (root / source).exists(), source
                assert any(source == entry or source.startswith(f"{entry}/") for entry in allowed), source


def test_secrets_and_the_rest_of_the_tree_stay_out(root: Path):
    lines = (root / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert "deploy/*" in rules
    assert not [line for line in rules if line.startswith("!deploy/secrets")]
    ignored = subprocess.run(
        ["git", "check-ignore", "--no-index", "deploy/secrets/janus_redis_url"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    if "not a git repository" in ignored.stderr:
        pytest.skip("this copy of the sources is not a git checkout")
    assert ignored.returncode == 0


def test_the_process_is_an_ordinary_user_that_cannot_change_its_code(dockerfile: list[tuple[str, str]]):
    stage = last_stage(dockerfile)
    users = [rest for word, rest in stage if word == "USER"]
    assert users == ["10001:10001"]
    words = [word for word, _ in stage]
    assert words.index("USER") > max(index for index, word in enumerate(words) if word in ("RUN", "COPY"))
    assert not [rest for word, rest in stage if word == "COPY" and "--chown" in rest]


def test_it_stops_on_sigterm_without_a_shell_in_between(dockerfile: list[tuple[str, str]]):
    last = dict(last_stage(dockerfile))
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert last["ENTRYPOINT"] == '["janus"]'
    assert last["CMD"].startswith("[")
    assert '"/opt/janus/probe.py"' in last["HEALTHCHECK"]


def test_the_image_says_what_it_is(dockerfile: list[tuple[str, str]]):
    labels = " ".join(rest for word, rest in last_stage(dockerfile) if word == "LABEL")
    for name in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{name}=" in labels
