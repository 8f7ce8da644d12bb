"""As whom the embedded stack runs: an ordinary user, root, and root where namespaces are refused."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from janus_app.embedded.accounts import closed_above
from janus_app.embedded.binaries import postgres_programs

ORDINARY = 65_534
NAMELESS = 54_321
SERVICES = Path(__file__).parents[2] / "services"

# Starts a stack, asks each part, and says as whom the servers ran and what the files are.
VISIT = """\
import asyncio, json, os, sys
from pathlib import Path
import asyncpg
from janus_app.embedded import EmbeddedError, stack

async def main():
    async with stack(Path(sys.argv[1])) as running:
        connection = await asyncpg.connect(running.addresses.postgres_url)
        await connection.execute("CREATE TABLE IF NOT EXISTS visit (n int); INSERT INTO visit VALUES (1)")
        visits = await connection.fetchval("SELECT count(*) FROM visit")
        await connection.close()
        users = {name: os.stat(f"/proc/{pid}").st_uid for name, pid in running.process_ids.items()}
        owner = os.stat(Path(sys.argv[1]) / "postgres").st_uid
        print(json.dumps({"visits": visits, "users": users, "owner": owner}))

try:
    asyncio.run(main())
except EmbeddedError as error:
    sys.exit(str(error))
"""

# As root in a user namespace that has 65,600 users, with no further namespaces allowed:
# what a container's default seccomp profile amounts to. Needs to be run by real root.
WITHOUT_NAMESPACES = """\
import ctypes, os, sys
from pathlib import Path
asks, told = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    if ctypes.CDLL(None).unshare(0x10000000) != 0:
        os._exit(99)
    os.write(asks[1], b".")
    os.read(told[0], 1)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    Path("/proc/sys/user/max_user_namespaces").write_text("0")
    os.execv(sys.argv[1], sys.argv[1:])
os.close(asks[1])
if os.read(asks[0], 1):
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{child}/{name}").write_text("0 0 65600")
    os.write(told[1], b".")
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def visit(data: Path, prefix: Sequence[str] = (), python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    packages = [str(SERVICES), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(packages),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/",
    }
    return subprocess.run(
        [*prefix, python, "-c", VISIT, str(data)],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture
def root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become other users")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="janus-users-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def become(uid: int) -> list[str]:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("setpriv (util-linux) is not installed")
    return [setpriv, "--reuid", str(uid), "--regid", str(uid), "--clear-groups"]


def python_for(uid: int) -> str:
    """A Python of our version that this user can run with our packages: ours may be in root's home."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    # setpriv can start what its user cannot, so that it has to start itself once more.
    code = (
        "import os, subprocess, sys;"
        f"subprocess.run([sys.executable, '-c', ''], check=True);"
        f"sys.exit(not os.access({sysconfig.get_path('purelib')!r}, os.R_OK))"
    )
    for candidate in (sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"):
        try:
            done = subprocess.run([*become(uid), candidate, "-c", code], cwd="/", capture_output=True, check=False)
        except FileNotFoundError:
            continue
        if done.returncode == 0:
            return candidate
    pytest.skip(f"user {uid} can run no Python {version} here: {sys.executable} is closed to others")


@pytest.mark.parametrize("uid", [ORDINARY, NAMELESS])
def test_an_ordinary_user_runs_everything_as_itself(root: None, open_folder: Path, uid: int):
    """Also one without an entry in /etc/passwd, which is how containers often run."""
    os.chown(open_folder, uid, uid)
    python = python_for(uid)
    for visits in (1, 2):
        said = answer(visit(open_folder / "data", become(uid), python))
        assert said == {
            "visits": visits,
            "users": {"postgres": uid, "redis": uid, "chroma": uid},
            "owner": uid,
        }


def test_root_runs_postgres_in_a_namespace_and_keeps_its_files(root: None, open_folder: Path):
    open_folder.chmod(0o700)
    said = answer(visit(open_folder / "data"))
    assert said["owner"] == 0
    assert open_folder.stat().st_mode & 0o777 == 0o700


def test_root_without_namespaces_runs_postgres_as_nobody_in_a_closed_folder(root: None, open_folder: Path):
    open_folder.chmod(0o700)
    if (closed := closed_above(postgres_programs().server)) is not None:
        pytest.skip(f"Postgres is installed below {closed}, which is closed to every account but root's")
    assert answer(visit(open_folder / "data"))["visits"] == 1  # made through a namespace, then taken over
    done = visit(open_folder / "data", [sys.executable, "-c", WITHOUT_NAMESPACES])
    if done.returncode == 99:
        pytest.skip("this machine refuses user namespaces, so that the test cannot make one to refuse them in")
    said = answer(done)
    assert (said["visits"], said["owner"], said["users"]["postgres"]) == (2, ORDINARY, ORDINARY)
    assert open_folder.stat().st_mode & 0o777 == 0o700
    assert answer(visit(open_folder / "data"))["visits"] == 3  # and so it stays


def test_a_folder_of_another_user_is_refused_with_its_name_and_left_as_it_is(root: None, open_folder: Path):
    data = open_folder / "data"
    data.mkdir()
    (data / "lock").touch()
    for path in (data, data / "lock"):
        os.chown(path, ORDINARY, ORDINARY)
    refused = visit(data)
    assert refused.returncode == 1
    assert f"made by user {ORDINARY}" in refused.stderr
    assert [file.name for file in data.iterdir()] == ["lock"]


def test_a_folder_that_cannot_be_written_is_named(root: None, open_folder: Path):
    refused = visit(open_folder / "data", become(ORDINARY), python_for(ORDINARY))
    assert refused.returncode == 1
    assert f"{open_folder}/data cannot be used: Permission denied" in refused.stderr
    assert "--data" in refused.stderr


def test_postgres_gives_up_every_privilege_in_its_namespace(root: None, stack_thread):
    postgres = psutil.Process(stack_thread.stack.process_ids["postgres"])
    status = Path(f"/proc/{postgres.pid}/status").read_text(encoding="ascii")
    effective = next(line for line in status.splitlines() if line.startswith("CapEff"))
    assert int(effective.split()[1], 16) == 0
