"""`protos/check.py` passes on what is committed and fails on each kind of mistake."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKS = ("lint", "format", "breaking", "drift")


def check(root: Path, *names: str) -> tuple[int, str]:
    command = [sys.executable, str(root / "protos" / "check.py"), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The protos and the generated code, to be broken."""
    bytecode = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "protos", tmp_path / "protos", ignore=bytecode)
    shutil.copytree(ROOT / "gen", tmp_path / "gen", ignore=bytecode)
    return tmp_path


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def test_what_is_committed_passes() -> None:
    assert check(ROOT) == (0, "")


def test_an_unknown_check_is_named(copy: Path) -> None:
    code, said = check(copy, "spelling")
    assert code == 2
    assert "spelling" in said


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "objection"),
    [
        ("lint", "content/v1/message.proto", "  // Who speaks. Required.\n", "", "non-empty comment"),
        ("lint", "content/v1/message.proto", "Role role = 1;", "Role Speaker = 1;", "lower_snake_case"),
        ("format", "content/v1/message.proto", "Role role = 1;", "Role  role = 1;", "Role role = 1;"),
        (
            "breaking",
            "content/v1/message.proto",
            "Role role = 1;",
            "Role speaker = 1;",
            'from "role" to "speaker"',
        ),
        ("breaking", "inference/v1/model.proto", "string version = 5;", "int32 version = 5;", "changed type"),
        (
            "drift",
            "content/v1/message.proto",
            "Role role = 1;",
            "Role speaker = 1;",
            "content/v1/message_pb2.py",
        ),
    ],
)
def test_a_mistake_in_a_proto_is_found(copy: Path, name: str, file: str, old: str, new: str, objection: str) -> None:
    edit(copy / "protos" / "janus" / file, old, new)
    code, said = check(copy, name)
    assert code == 1
    assert objection in said


def test_an_rpc_may_not_vanish(copy: Path) -> None:
    file = copy / "protos" / "janus" / "common" / "v1" / "status_service.proto"
    text = file.read_text()
    start = text.index("  rpc GetStatus")
    file.write_text(text[:start] + text[text.index("  }\n", start) + len("  }\n") :])
    code, said = check(copy, "breaking")
    assert code == 1
    assert '"GetStatus"' in said


def test_a_new_field_does_not_break(copy: Path) -> None:
    edit(
        copy / "protos" / "janus" / "inference" / "v1" / "model.proto",
        "  string version = 5;\n",
        "  string version = 5;\n  // ISO 4217. Empty: USD.\n  string currency = 6;\n",
    )
    assert check(copy, "lint", "format", "breaking") == (0, "")


def test_an_edit_of_the_generated_code_is_found(copy: Path) -> None:
    folder = copy / "gen" / "janus_api" / "content" / "v1"
    (folder / "message_pb2.pyi").open("a").write("# a note\n")
    (folder / "usage_pb2.py").unlink()
    (folder / "extra.py").touch()
    code, said = check(copy, "drift")
    assert code == 1
    assert {line for line in said.splitlines() if line.startswith("gen/")} == {
        "gen/janus_api/content/v1/message_pb2.pyi",
        "gen/janus_api/content/v1/usage_pb2.py",
        "gen/janus_api/content/v1/extra.py",
    }


def test_regenerating_mends_the_code_and_leaves_the_rest_alone(copy: Path) -> None:
    folder = copy / "gen" / "janus_api" / "content" / "v1"
    (folder / "message_pb2.py").unlink()
    (folder / "extra.py").touch()
    before = (folder / "usage_pb2.py").stat()
    subprocess.run([sys.executable, str(copy / "protos" / "generate.py")], check=True)
    assert check(copy, "drift") == (0, "")
    after = (folder / "usage_pb2.py").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
