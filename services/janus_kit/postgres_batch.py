"""The writes of a transaction, sent together.

A statement is a round trip, and a transaction of small ones is mostly waiting.
``Batch.later`` keeps a write that needs no answer until the next statement, or
the end, and they go as one: all but the last are its common table expressions.

Parts of one statement see the same snapshot and run in no order. So a statement
that names a table which one that waits names too goes after it, as one that
locks rows does. What a write breaks is known only when it is sent.
"""

import re
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import asyncpg

from janus_kit.postgres import Connection

Refusals = Mapping[str, Callable[[], Exception]]
"""What is raised when a statement breaks a constraint, by the constraint's name."""

_PARAMETER = re.compile(r"\$(\d+)")
_WITH = re.compile(r"WITH (RECURSIVE )?")
_LOCK = re.compile(r" FOR (UPDATE|SHARE)\b|_lock\(")
_NONE: Refusals = {}


class _Statement(NamedTuple):
    sql: str
    arguments: tuple[object, ...]
    refusals: Refusals = _NONE


class Batch:
    """One transaction on a connection. ``schema`` is where its tables are; statements name it with each of them."""

    def __init__(self, connection: Connection, schema: str) -> None:
        self._connection = connection
        self._schema = schema
        self._waiting: list[_Statement] = []
        self._tables: frozenset[str] = frozenset()
        self._refusals: dict[str, Callable[[], Exception]] = {}

    def ahead(self, sql: str, **refusals: Callable[[], Exception]) -> None:
        """Have a statement without parameters, which returns no rows, go ahead of the next one: it is no round trip.

        ``refusals`` are what is raised when it fails, by the SQLSTATE.
        """
        self._connection.ahead(sql)
        self._refusals |= refusals

    async def later(self, sql: str, *arguments: object, refusals: Refusals | None = None) -> None:
        """Write before anything that could see it, or at the end.

        ``sql`` inserts, updates or deletes, and has no WITH of its own.
        """
        tables = _tables(sql, self._schema)
        if not tables.isdisjoint(self._tables):
            await self.send()
        self._waiting.append(_Statement(sql, arguments, refusals or _NONE))
        self._tables |= tables

    async def send(self) -> None:
        """Send what waits, as must be done at the end of a transaction."""
        if self._waiting:
            await self._run(self._connection.execute, self._waiting.pop())

    async def execute(self, sql: str, *arguments: object, apart: Collection[str] = ()) -> str:
        """Of tables that are ``apart``, what waits writes other rows than the statement reads, writes or locks."""
        status: str = await self._run_after_others(self._connection.execute, sql, arguments, apart)
        return status

    async def fetch(self, sql: str, *arguments: object) -> list[Any]:
        rows: list[Any] = await self._run_after_others(self._connection.fetch, sql, arguments)
        return rows

    async def fetch_as_before(self, sql: str, *arguments: object) -> list[Any]:
        """Rows as they were before what waits, which goes along."""
        rows: list[Any] = await self._run(self._connection.fetch, _Statement(sql, arguments))
        return rows

    async def fetchrow(self, sql: str, *arguments: object) -> Any:
        return await self._run_after_others(self._connection.fetchrow, sql, arguments)

    async def fetchval(self, sql: str, *arguments: object) -> Any:
        return await self._run_after_others(self._connection.fetchval, sql, arguments)

    async def _run_after_others(
        self, run: Callable[..., Any], sql: str, arguments: tuple[object, ...], apart: Collection[str] = ()
    ) -> Any:
        tables = _tables(sql, self._schema).difference(apart)
        if self._waiting and ((_locks(sql) and not apart) or not tables.isdisjoint(self._tables)):
            await self.send()
        return await self._run(run, _Statement(sql, arguments))

    async def _run(self, run: Callable[..., Any], last: _Statement) -> Any:
        """Run a statement together with what waits."""
        waiting, self._waiting, self._tables = self._waiting, [], frozenset()
        statements = [*waiting, last]
        sql, arguments = last.sql, last.arguments
        if waiting:
            sql = _together(tuple([(each.sql, len(each.arguments)) for each in statements]))
            arguments = tuple([value for each in statements for value in each.arguments])
        try:
            return await run(sql, *arguments)
        except asyncpg.PostgresError as error:
            names = error.constraint_name or "", error.sqlstate
            for refusals in (*(each.refusals for each in statements), self._refusals):
                for name in names:
                    if (refusal := refusals.get(name)) is not None:
                        raise refusal() from error
            raise


@lru_cache(maxsize=1024)
def _together(statements: tuple[tuple[str, int], ...]) -> str:
    """One statement that does all of them; its result is the last one's."""
    parts: list[str] = []
    before = 0
    for sql, count in statements:
        parts.append(_numbered_from(sql, before))
        before += count
    last = parts.pop()
    if not parts:
        return last
    written = ", ".join(f"written_{number} AS ({part})" for number, part in enumerate(parts))
    own = _WITH.match(last)
    return f"{own[0]}{written}, {last[own.end() :]}" if own else f"WITH {written} {last}"


def _numbered_from(sql: str, before: int) -> str:
    """A statement whose parameters come after ``before`` others."""
    return _PARAMETER.sub(lambda found: f"${int(found[1]) + before}", sql)


@lru_cache(maxsize=1024)
def _locks(sql: str) -> bool:
    return _LOCK.search(sql) is not None


@lru_cache(maxsize=1024)
def _tables(sql: str, schema: str) -> frozenset[str]:
    return frozenset(re.findall(rf"\b{schema}\.(\w+)", sql))
