"""Parts of the embedded stack that need no server."""

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from janus_app.embedded import EmbeddedError, default_data_folder, logfile, ports, read_state, socket_path
from janus_app.embedded import binaries as programs
from janus_app.embedded import stack as embedded_stack
from janus_app.embedded.folder import DataFolder, remove_socket
from janus_app.embedded.state import State, load, save


def test_the_default_data_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert default_data_folder() == Path("/home/someone/.local/share/janus")
    monkeypatch.setenv("XDG_DATA_HOME", "/elsewhere")
    assert default_data_folder() == Path("/elsewhere/janus")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert default_data_folder() == Path("/home/someone/.local/share/janus")


def test_a_data_folder_is_made_for_its_owner_alone(tmp_path: Path):
    with DataFolder(tmp_path / "deep" / "data").held():
        assert stat.S_IMODE((tmp_path / "deep" / "data").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "deep" / "data" / "state.json").stat().st_mode) == 0o600


def test_a_file_in_the_place_of_the_data_folder_is_reported(tmp_path: Path):
    (tmp_path / "data").touch()
    with pytest.raises(EmbeddedError, match="cannot be used") as refused, DataFolder(tmp_path / "data").held():
        pass
    assert "--data" in refused.value.fix


def test_a_secret_is_made_once_and_belongs_to_its_owner(tmp_path: Path):
    folder = DataFolder(tmp_path / "data")
    with folder.held():
        file, made = folder.secret_file("postgres")
        text = file.read_text(encoding="ascii")
        assert made
        assert len(text) >= 32
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert folder.secret_file("postgres") == (file, False)
        assert file.read_text(encoding="ascii") == text


@pytest.fixture
def runtime_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """XDG_RUNTIME_DIR, with a path as short as such folders have (pytest's are not)."""
    with tempfile.TemporaryDirectory(prefix="run-", dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


def test_a_socket_path_is_always_short_the_same_and_private(runtime_folder: Path):
    short, long = Path("/srv/janus"), Path("/srv").joinpath(*["a long name"] * 20)
    assert socket_path(short) == short / "janus.sock"  # and nothing is made
    found = socket_path(long)
    assert found == socket_path(long)
    assert found.parent.parent == runtime_folder
    assert found != socket_path(long / "other")
    assert len(os.fsencode(found)) <= 100
    assert stat.S_IMODE(found.parent.stat().st_mode) == 0o700
    found.touch()
    remove_socket(long)
    assert not found.parent.exists()


def test_a_socket_folder_that_others_can_write_is_not_used(runtime_folder: Path):
    long = Path("/srv").joinpath(*["a long name"] * 20)
    planted = socket_path(long).parent
    planted.chmod(0o777)
    try:
        assert socket_path(long).parent != planted
    finally:
        planted.chmod(0o700)
        remove_socket(long)


def test_the_state_of_this_process_is_read_and_that_of_a_dead_one_is_not(tmp_path: Path):
    ours = State.ours({"postgres": 20_001}).with_published({"grpc": "127.0.0.1:1", "http": None})
    save(tmp_path, ours)
    assert read_state(tmp_path) == ours
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    save(tmp_path, State(pid=ended.pid, started=1, ports={"postgres": 20_001}))
    assert read_state(tmp_path) is None
    assert load(tmp_path).ports == {"postgres": 20_001}


def test_another_process_with_the_same_id_is_not_taken_for_the_mesh(tmp_path: Path):
    save(tmp_path, State(pid=os.getpid(), started=1))
    assert read_state(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"pid": 1}', '{"pid": "x", "ports": 3}', "\x00"])
def test_a_damaged_state_file_counts_as_none(tmp_path: Path, text: str):
    (tmp_path / "state.json").write_text(text, encoding="utf-8")
    assert load(tmp_path) == State()
    assert read_state(tmp_path) is None


def test_the_state_file_is_plain_json_that_a_script_can_use(tmp_path: Path):
    save(tmp_path, State.ours({}).with_published({"grpc": "127.0.0.1:50051"}))
    assert json.loads((tmp_path / "state.json").read_text())["published"]["grpc"] == "127.0.0.1:50051"


def test_nothing_that_is_printed_holds_a_password():
    from janus_app.embedded import Addresses

    addresses = Addresses("postgresql://janus:hidden@h/d", "redis://:hidden@h/0", None)
    state = State(postgres_url=addresses.postgres_url, redis_url=addresses.redis_url)
    assert "hidden" not in repr(addresses) + repr(state)


def test_a_port_is_kept_while_it_is_free_and_changed_when_it_is_not():
    port = ports.choose(None)
    assert ports.choose(port) == port
    assert ports.choose(port, taken={port}) != port
    with socket.socket() as somebody:
        somebody.bind(("127.0.0.1", port))
        somebody.listen()
        assert not ports.is_free(port)
        assert ports.choose(port) != port


def test_a_log_is_cut_at_its_limit_while_it_is_written(tmp_path: Path):
    file = tmp_path / "server.log"
    with file.open("ab", buffering=0) as server:
        server.write(b"old\n" * 100)
        logfile.bound(file, limit=1000)
        assert file.stat().st_size == 400
        logfile.bound(file, limit=400)
        server.write(b"new\n")
    assert file.read_text() == "new\n"
    assert (tmp_path / "server.log.1").stat().st_size == 400
    assert logfile.tail(file) == "    new"


async def test_a_missing_wheel_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(programs.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    for given in ({}, {"postgres_url": "p"}, {"postgres_url": "p", "redis_url": "r"}):
        with pytest.raises(EmbeddedError, match="is not installed") as refused:
            async with embedded_stack(tmp_path / "data", **given):
                pass
        assert "pip install 'janus-mesh[embedded]'" in refused.value.fix
        assert "_URL" in refused.value.fix


async def test_another_platform_is_told_what_to_do_and_can_use_servers_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(programs.sys, "platform", "darwin")
    with pytest.raises(EmbeddedError, match="Linux only") as refused:
        async with embedded_stack(tmp_path / "data"):
            pass
    assert "JANUS_POSTGRES_URL" in refused.value.fix
    async with embedded_stack(tmp_path / "data", postgres_url="p", redis_url="r", chroma_url="c") as running:
        assert running.process_ids == {}
