"""Migrations against a real server: once, in order, together, and never behind one's back."""

import asyncio
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest
from pydantic import SecretStr

from janus_kit.errors import Unavailable
from janus_kit.migrations import MigrationError, find, migrate
from janus_kit.postgres import database
from janus_kit.settings import PostgresSettings

Package = Callable[..., str]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    """Makes an importable package with migrations, and changes them when called again."""
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"probe_{uuid.uuid4().hex}"

    def make(**files: str) -> str:
        folder = tmp_path / name / "migrations"
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "__init__.py").touch()
        for stem, sql in files.items():
            (folder / f"{stem.removeprefix('n')}.sql").write_text(sql)
        return name

    yield make
    sys.modules.pop(name, None)


@pytest.fixture
def settings(empty_url: str) -> PostgresSettings:
    return PostgresSettings(url=SecretStr(empty_url))


async def fetch(settings: PostgresSettings, query: str) -> list[tuple[object, ...]]:
    connection = await asyncpg.connect(settings.url.get_secret_value())
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


async def test_roles_ledger_and_vectors_are_there_afterwards(settings):
    await migrate(settings, [])
    roles = await fetch(
        settings,
        "SELECT rolname, rolcanlogin, rolsuper, rolbypassrls FROM pg_roles "
        "WHERE rolname IN ('janus_app', 'janus_worker') ORDER BY 1",
    )
    assert roles == [("janus_app", False, False, False), ("janus_worker", False, False, False)]
    assert await fetch(settings, "SELECT '[1,2]'::vector::text") == [("[1,2]",)]
    ledger = await fetch(settings, "SELECT package, number, name FROM janus_meta.migration")
    assert ("janus_kit", 1, "roles") in ledger


async def test_files_are_applied_in_order_and_once(settings, package):
    name = package(n0001_first="CREATE TABLE ordered (n int)", n0002_second="INSERT INTO ordered VALUES (2)")
    applied = await migrate(settings, [name])
    assert [(m.package, m.number) for m in applied][-2:] == [(name, 1), (name, 2)]
    assert await migrate(settings, [name]) == []
    package(n0003_third="INSERT INTO ordered VALUES (3)")
    assert [m.number for m in await migrate(settings, [name])] == [3]
    assert await fetch(settings, "SELECT n FROM ordered ORDER BY n") == [(2,), (3,)]


async def test_many_replicas_that_start_together_apply_it_once(settings, package):
    name = package(n0001_first="CREATE TABLE together (n int)", n0002_fill="INSERT INTO together VALUES (1)")
    applied = await asyncio.gather(*(migrate(settings, [name]) for _ in range(5)))
    assert sorted(len([m for m in each if m.package == name]) for each in applied) == [0, 0, 0, 0, 2]
    assert await fetch(settings, "SELECT count(*) FROM together") == [(1,)]


async def test_a_file_that_fails_leaves_nothing_and_can_be_mended(settings, package):
    name = package(n0001_broken="CREATE TABLE half (n int); SELECT * FROM nothing_here")
    with pytest.raises(asyncpg.UndefinedTableError):
        await migrate(settings, [name])
    assert await fetch(settings, "SELECT to_regclass('half')::text") == [(None,)]
    package(n0001_broken="CREATE TABLE half (n int)")
    assert len(await migrate(settings, [name])) == 1


async def test_a_file_that_was_changed_afterwards_is_noticed(settings, package):
    name = package(n0001_first="SELECT 1")
    await migrate(settings, [name])
    package(n0001_first="SELECT 2")
    with pytest.raises(MigrationError, match="0001_first: the file was changed"):
        await migrate(settings, [name])


async def test_a_newer_versions_migrations_do_not_stop_an_older_version(settings, package):
    name = package(n0001_first="SELECT 1", n0002_newer="SELECT 2")
    await migrate(settings, [name])
    (Path(sys.modules[name].__path__[0]) / "migrations" / "0002_newer.sql").unlink()
    assert await migrate(settings, [name]) == []


def test_a_gap_in_the_numbers_is_refused(package):
    name = package(n0001_first="SELECT 1", n0003_third="SELECT 3")
    with pytest.raises(MigrationError, match="without gaps"):
        find(name)


def test_a_package_without_migrations_has_none():
    assert find("janus_kit.auth") == []


async def test_a_user_without_powers_migrates_what_an_administrator_prepared(settings, package):
    """Production: roles and extension are made beforehand; Janus's own user owns the rest."""
    await migrate(settings, [])
    name = package(n0001_first="CREATE SCHEMA owned; GRANT USAGE ON SCHEMA owned TO janus_app")
    unique = uuid.uuid4().hex[:8]
    owner, fresh = f"owner_{unique}", f"fresh_{unique}"
    base, _, address = settings.url.get_secret_value().rpartition("@")
    host = address.rpartition("/")[0]
    administrator = await asyncpg.connect(settings.url.get_secret_value())
    try:
        await administrator.execute(f"CREATE ROLE {owner} LOGIN PASSWORD 'p'")
        await administrator.execute(f"GRANT janus_app, janus_worker TO {owner}")
        await administrator.execute(f"CREATE DATABASE {fresh} OWNER {owner}")
        inside = await asyncpg.connect(f"{base}@{host}/{fresh}")
        await inside.execute("CREATE EXTENSION vector")
        await inside.close()
        mine = PostgresSettings(url=SecretStr(f"postgresql://{owner}:p@{host}/{fresh}"))
        assert [m.package for m in await migrate(mine, [name])] == ["janus_kit", name]
        async with database(mine, application="plain") as db, db.tenant("acme") as connection:
            assert await connection.fetchval("SELECT current_user") == "janus_app"
    finally:
        await administrator.execute(f"DROP DATABASE IF EXISTS {fresh} WITH (FORCE)")
        await administrator.execute(f"DROP ROLE {owner}")
        await administrator.close()


async def test_postgres_that_is_away_is_unavailable():
    away = PostgresSettings(url=SecretStr("postgresql://nobody@127.0.0.1:1/nothing"))
    with pytest.raises(Unavailable):
        await migrate(away, [], wait_s=0.3)
