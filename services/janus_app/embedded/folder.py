"""The data folder: its layout, its lock, its secrets, and short paths for sockets."""

import errno
import hashlib
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from janus_app.embedded.errors import DataFolderInUse, EmbeddedError
from janus_app.embedded.state import State, load, save

# The kernel allows 107 bytes; some room is left for suffixes that libraries add.
LONGEST_SOCKET_PATH = 100
_SOCKET = "janus.sock"
# A process that was killed a moment ago holds its lock until the kernel has taken it apart.
_LOCK_PATIENCE_S = 0.5


def default_data_folder() -> Path:
    """``$XDG_DATA_HOME/janus``, by default ``~/.local/share/janus``."""
    configured = os.environ.get("XDG_DATA_HOME", "")
    # The XDG specification says to ignore a relative one.
    base = Path(configured) if os.path.isabs(configured) else Path.home() / ".local" / "share"
    return base / "janus"


def socket_path(data: Path) -> Path:
    """Where the mesh's Unix socket for this data folder belongs; at most 100 bytes long.

    In the data folder when that is short enough, else in a folder of our own
    below XDG_RUNTIME_DIR or the temporary folder (made here, mode 0700, the
    same one each time; `stack` removes it at its end).
    """
    data = data.expanduser().resolve()
    inside = data / _SOCKET
    if len(os.fsencode(inside)) <= LONGEST_SOCKET_PATH:
        return inside
    name = _short_name(data)
    for base in _short_bases():
        path = base / name / _SOCKET
        if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH and _make_private(path.parent):
            return path
    raise EmbeddedError(
        f"the path {data} is too long for a Unix socket, and no short folder for it can be made",
        "Set XDG_RUNTIME_DIR to a folder that only you can write to, or choose a shorter --data.",
    )


def remove_socket(data: Path) -> None:
    """Remove the socket of an earlier run, and the short folder made for it."""
    data = data.expanduser().resolve()
    (data / _SOCKET).unlink(missing_ok=True)
    for base in _short_bases():
        folder = base / _short_name(data)
        try:
            if stat.S_ISDIR(folder.lstat().st_mode) and folder.lstat().st_uid == os.geteuid():
                (folder / _SOCKET).unlink(missing_ok=True)
                folder.rmdir()
        except OSError:
            continue


def _short_name(data: Path) -> str:
    return f"janus-{os.geteuid()}-{hashlib.sha256(os.fsencode(data)).hexdigest()[:12]}"


def _short_bases() -> list[Path]:
    candidates = [os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"]  # noqa: S108
    return [Path(base) for base in candidates if base and os.path.isabs(base)]


def _make_private(folder: Path) -> bool:
    """Make the folder; False when it is not ours alone (somebody else may have made it)."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except OSError:
        return False
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) & 0o077 == 0


class DataFolder:
    """One data folder, held by at most one process at a time.

    ``postgres/  redis/  chroma/  log/  secrets/  lock  state.json  janus.sock``
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        self.log = self.path / "log"
        self._secrets = self.path / "secrets"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder (mode 0700) and hold its lock.

        The kernel drops the lock when we die, however we die. Raises
        DataFolderInUse when somebody holds it, EmbeddedError when the folder
        cannot be used.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            self._check_owner(os.fstat(lock).st_uid)
            self._lock(lock)
            try:
                for folder in (self.log, self._secrets):
                    folder.mkdir(mode=0o700, exist_ok=True)
            except OSError as error:
                raise self._unusable(error) from error
            self.write_state(State.ours(load(self.path).ports))
            yield
        finally:
            os.close(lock)

    def _lock(self, lock: int) -> None:
        import fcntl  # not on every platform that the clients of the mesh run on

        deadline = time.monotonic() + _LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.01)
                    continue
                holder = load(self.path)
                if not holder.alive:  # it has the lock and has not come to write the file
                    holder = State()
                raise DataFolderInUse(str(self.path), holder.pid, holder.published.get("grpc")) from None
            except OSError as error:
                raise self._unusable(error) from error
            return

    def write_state(self, state: State) -> None:
        """Replace the state file."""
        try:
            save(self.path, state)
        except OSError as error:
            raise self._unusable(error) from error

    def part(self, name: str) -> Path:
        """The folder of one part, made when absent."""
        folder = self.path / name
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from error
        return folder

    def secret_file(self, name: str) -> tuple[Path, bool]:
        """The file with a part's password (mode 0600), and whether it was made just now."""
        file = self._secrets / name
        try:
            if file.is_file() and file.read_text(encoding="ascii").strip():
                return file, False
            fresh = file.with_suffix(".new")
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as out:
                out.write(secrets.token_urlsafe(24))
                out.flush()
                # A database created with a password that a power cut takes away is a nuisance.
                os.fsync(out.fileno())
            os.replace(fresh, file)
        except OSError as error:
            raise self._unusable(error) from error
        return file, True

    def _check_owner(self, owner: int) -> None:
        """Root could use another's folder, but what it writes there would lock its owner out."""
        if owner != os.geteuid():
            raise EmbeddedError(
                f"the data folder {self.path} was made by user {owner}, and this is user {os.geteuid()}",
                "Run Janus as the user who made it, or choose another folder with --data.",
            )

    def _unusable(self, error: OSError) -> EmbeddedError:
        problem = f"the data folder {self.path} cannot be used: {error.strerror or error}"
        if error.errno == errno.ENOSPC:
            return EmbeddedError(problem, "Free some space, or choose a folder on another disk with --data.")
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return EmbeddedError(
                problem,
                "Choose a folder that you can write to with --data, or run as the user who owns this one.",
            )
        return EmbeddedError(problem, "Choose another folder, on a local disk, with --data.")
