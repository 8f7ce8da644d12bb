"""Schema migrations: numbered SQL files, applied once, forward only.

A package keeps them as ``<package>/migrations/0001_name.sql``. Every replica may
call ``migrate`` at start: an advisory lock lets one work while the others wait,
and a checksum of every applied file is kept, so that an edited file is noticed.
Each file runs in a transaction of its own, as the user of the URL, who becomes
the owner of what it makes; the file grants ``janus_app`` and ``janus_worker``
what they need.
"""

import asyncio
import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import asyncpg

from janus_kit.errors import Unavailable
from janus_kit.settings import PostgresSettings
from janus_kit.telemetry.logging import get_logger

_log = get_logger(__name__)

# "janus" in ASCII: any number does, as long as every replica uses the same.
_LOCK = 0x6A616E7573
_FILE = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_RETRY_S = 0.2


class MigrationError(Exception):
    """The files or the database are not what forward-only migrations allow."""


@dataclass(frozen=True)
class Migration:
    """One file."""

    package: str
    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the file, hexadecimal."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


async def migrate(settings: PostgresSettings, packages: Sequence[str], *, wait_s: float = 0.0) -> list[Migration]:
    """Apply what is missing: Janus's own roles and ledger first, then package by package.

    Returns what it applied. While Postgres is away it tries again for
    ``wait_s`` seconds and then raises Unavailable; raises MigrationError when
    an applied file was changed or the files' numbers have a gap.
    """
    wanted = [migration for package in dict.fromkeys(["janus_kit", *packages]) for migration in find(package)]
    connection = await _connect(settings, wait_s)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
        return await _apply(connection, wanted)
    except (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError) as error:
        raise Unavailable("postgres", "postgres went away during a migration") from error
    finally:
        # Closing the session releases the lock.
        connection.terminate()


def find(package: str) -> list[Migration]:
    """A package's migrations, in order. Raises MigrationError on a gap or duplicate."""
    folder = resources.files(package) / "migrations"
    found = []
    for entry in folder.iterdir() if folder.is_dir() else ():
        match = _FILE.fullmatch(entry.name)
        if match is not None:
            sql = entry.read_text(encoding="utf-8")
            found.append(Migration(package, int(match[1]), match[2], sql))
    found.sort(key=lambda migration: migration.number)
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise MigrationError(f"{package}: migration numbers must count from 0001 without gaps")
    return found


async def _connect(settings: PostgresSettings, wait_s: float) -> asyncpg.Connection:
    give_up = time.monotonic() + wait_s
    while True:
        try:
            return await asyncpg.connect(settings.url.get_secret_value(), timeout=settings.connect_timeout_s)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            if time.monotonic() >= give_up:
                raise Unavailable("postgres", "postgres is not available") from error
        await asyncio.sleep(_RETRY_S)


async def _apply(connection: asyncpg.Connection, wanted: list[Migration]) -> list[Migration]:
    applied = await _ledger(connection)
    done = []
    for migration in wanted:
        checksum = applied.get((migration.package, migration.number))
        label = f"{migration.package} {migration.number:04d}_{migration.name}"
        if checksum == migration.checksum:
            continue
        if checksum is not None:
            raise MigrationError(f"{label}: the file was changed after it had been applied")
        began = time.monotonic()
        async with connection.transaction():
            await connection.execute(migration.sql)
            await connection.execute(
                "INSERT INTO janus_meta.migration (package, number, name, checksum) VALUES ($1, $2, $3, $4)",
                migration.package,
                migration.number,
                migration.name,
                migration.checksum,
            )
        done.append(migration)
        _log.info("migration_applied", migration=label, seconds=round(time.monotonic() - began, 3))
    return done


async def _ledger(connection: asyncpg.Connection) -> dict[tuple[str, int], str]:
    if await connection.fetchval("SELECT to_regclass('janus_meta.migration') IS NULL"):
        return {}
    rows = await connection.fetch("SELECT package, number, checksum FROM janus_meta.migration")
    return {(row["package"], row["number"]): row["checksum"] for row in rows}
