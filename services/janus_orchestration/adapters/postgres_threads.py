"""Agents, threads and messages in Postgres."""

from collections.abc import Sequence
from datetime import datetime
from operator import attrgetter

from janus_kit.postgres import literal
from janus_kit.postgres_batch import Batch
from janus_orchestration.adapters import rows
from janus_orchestration.model import Agent, Message, Run, Thread, ThreadMessage
from janus_orchestration.ports import message_taken

# What goes with a run, and with a thread.
_OF_RUNS = ("run_epoch", "step", "event", "run_lease", "tool_dispatch", "pending", "webhook_delivery")
_OF_THREADS = (("memory_outbox", "thread_id"), ("message", "thread_id"), ("thread", "id"))


class PostgresConversations:
    """Part of ``PostgresRecords``: one tenant's agents and conversations."""

    _connection: Batch
    _tenant: str

    async def lock_agent(self, name: str) -> Agent | None:
        # The row of an agent that is not there cannot be locked; a lock by name can.
        await self._connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"agent\n{self._tenant}\n{name}"
        )
        return await self.agent(name)

    async def agent(self, name: str, version: int = 0) -> Agent | None:
        row = await self._connection.fetchrow(
            "SELECT v.version, v.spec, v.created_at FROM orchestration.agent a "
            "JOIN orchestration.agent_version v ON v.tenant = a.tenant AND v.name = a.name "
            "AND v.version = CASE $3::bigint WHEN 0 THEN a.version ELSE $3 END "
            "WHERE a.tenant = $1 AND a.name = $2",
            self._tenant,
            name,
            version,
        )
        return None if row is None else rows.agent_from(row)

    async def purposes(self, names: Sequence[str]) -> dict[str, str]:
        found = await self._connection.fetch(
            "SELECT name, v.spec->>'description' AS purpose FROM orchestration.agent "
            "JOIN orchestration.agent_version v USING (tenant, name, version) "
            "WHERE tenant = $1 AND name = ANY($2::text[])",
            self._tenant,
            list(names),
        )
        return {row["name"]: row["purpose"] for row in found}

    async def threads_below(self, thread_id: str) -> list[str]:
        found = await self._connection.fetch(
            "WITH RECURSIVE below AS (SELECT $2::text AS id UNION SELECT t.id FROM below "
            "JOIN orchestration.run r ON r.tenant = $1 AND r.thread_id = below.id "
            "JOIN orchestration.thread t ON t.tenant = $1 AND t.parent_run = r.id"
            ") SELECT id FROM below WHERE id <> $2 ORDER BY id",
            self._tenant,
            thread_id,
        )
        return [row["id"] for row in found]

    async def set_thread_agent(self, thread_id: str, agent: str) -> None:
        await self._connection.later(
            "UPDATE orchestration.thread SET agent = $3 WHERE tenant = $1 AND id = $2", self._tenant, thread_id, agent
        )

    async def agents(self, after: str, limit: int) -> list[Agent]:
        found = await self._connection.fetch(
            "SELECT v.version, v.spec, v.created_at FROM orchestration.agent a "
            "JOIN orchestration.agent_version v USING (tenant, name, version) "
            'WHERE a.tenant = $1 AND a.name COLLATE "C" > $2 ORDER BY a.name COLLATE "C" LIMIT $3',
            self._tenant,
            after,
            limit,
        )
        return [rows.agent_from(row) for row in found]

    async def add_agent(self, agent: Agent) -> None:
        await self._connection.execute(
            "WITH head AS (INSERT INTO orchestration.agent (tenant, name, version) VALUES ($1, $2, $3) "
            "ON CONFLICT (tenant, name) DO UPDATE SET version = excluded.version) "
            "INSERT INTO orchestration.agent_version (tenant, name, version, spec, created_at) "
            "VALUES ($1, $2, $3, $4, $5)",
            self._tenant,
            agent.spec.name,
            agent.version,
            rows.spec_to(agent.spec),
            agent.created_at,
        )

    async def agent_version(self, name: str, version: int) -> Agent | None:
        row = await self._connection.fetchrow(
            "SELECT version, spec, created_at FROM orchestration.agent_version "
            "WHERE tenant = $1 AND name = $2 AND version = $3",
            self._tenant,
            name,
            version,
        )
        return None if row is None else rows.agent_from(row)

    async def newest_version(self, name: str) -> int:
        version: int = await self._connection.fetchval(
            "SELECT coalesce(max(version), 0) FROM orchestration.agent_version WHERE tenant = $1 AND name = $2",
            self._tenant,
            name,
        )
        return version

    async def remove_agent(self, name: str) -> None:
        await self._connection.execute(
            "DELETE FROM orchestration.agent WHERE tenant = $1 AND name = $2", self._tenant, name
        )

    async def thread(self, thread_id: str) -> Thread | None:
        return await self._thread(thread_id, "")

    async def lock_thread(self, thread_id: str) -> Thread | None:
        return await self._thread(thread_id, " FOR UPDATE")

    async def lock_thread_for(
        self, thread_id: str, agent: str, otherwise: str, *, limit: int, most_bytes: int
    ) -> tuple[Thread | None, Agent | None, list[ThreadMessage]]:
        # By itself, so that what is read next is read after it has waited. Rows that OFFSET passes over are locked.
        self._connection.ahead(
            f"SELECT 1 FROM orchestration.thread WHERE tenant = {literal(self._tenant)} "  # noqa: S608 - literals
            f"AND id = {literal(thread_id)} FOR UPDATE OFFSET 1"
        )
        row = await self._connection.fetchrow(
            f"SELECT {', '.join('t.' + column for column in rows.THREAD_COLUMNS.split(', '))}, "  # noqa: S608
            "v.version, v.spec, v.created_at, said.* FROM orchestration.thread t "
            "LEFT JOIN orchestration.agent a ON a.tenant = t.tenant "
            "AND a.name = coalesce(nullif($3, ''), nullif(t.agent, ''), $4) "
            "LEFT JOIN orchestration.agent_version v ON v.tenant = a.tenant AND v.name = a.name "
            "AND v.version = a.version CROSS JOIN LATERAL ("
            f"SELECT {', '.join(f'array_agg({column})' for column in rows.MESSAGE_COLUMNS.split(', '))} "
            f"FROM ({_sized('WHERE tenant = $1 AND thread_id = $2 AND t.active_run IS NULL', 'DESC', 5)}) newest"
            ") said WHERE t.tenant = $1 AND t.id = $2",
            self._tenant,
            thread_id,
            agent,
            otherwise,
            limit,
            most_bytes,
        )
        if row is None:
            return None, None, []
        found, version, said = rows.parts(row, rows.THREAD_COLUMNS, "version, spec, created_at", rows.MESSAGE_COLUMNS)
        history = list(map(rows.message_from, zip(*said.values(), strict=True))) if said["id"] else []
        history.sort(key=attrgetter("position"))
        return rows.thread_from(found), None if version["spec"] is None else rows.agent_from(version), history

    async def _thread(self, thread_id: str, lock: str) -> Thread | None:
        row = await self._connection.fetchrow(
            f"SELECT {rows.THREAD_COLUMNS} FROM orchestration.thread "  # noqa: S608 - constants only
            f"WHERE tenant = $1 AND id = $2{lock}",
            self._tenant,
            thread_id,
        )
        return None if row is None else rows.thread_from(row)

    async def add_thread(self, thread: Thread) -> bool:
        status: str = await self._connection.execute(
            "INSERT INTO orchestration.thread "
            "(tenant, id, agent, subject, title, metadata, created_at, updated_at, forked_from, forked_at, parent_run) "
            "VALUES ($1, $2, $3, $4, $5, $6, $7, $7, $8, $9, $10) ON CONFLICT DO NOTHING",
            self._tenant,
            thread.id,
            thread.agent,
            thread.subject,
            thread.title,
            thread.metadata_json,
            thread.created_at,
            thread.forked_from,
            thread.forked_at,
            thread.parent_run or None,
        )
        return status.endswith(" 1")

    async def threads(self, subject: str, agent: str, after: tuple[datetime, str] | None, limit: int) -> list[Thread]:
        values: list[object] = [self._tenant, limit]
        where = ["tenant = $1", "parent_run IS NULL"]
        for column, value in (("subject", subject), ("agent", agent)):
            if value:
                values.append(value)
                where.append(f"{column} = ${len(values)}")
        if after is not None:
            values += after
            where.append(f"(updated_at, id) < (${len(values) - 1}, ${len(values)})")
        found = await self._connection.fetch(
            f"SELECT {rows.THREAD_COLUMNS} FROM orchestration.thread WHERE {' AND '.join(where)} "  # noqa: S608
            "ORDER BY updated_at DESC, id DESC LIMIT $2",
            *values,
        )
        return [rows.thread_from(row) for row in found]

    async def copy_messages(self, source: Thread, to: Thread, position: int) -> None:
        await self._connection.execute(
            "INSERT INTO orchestration.message (tenant, thread_id, id, position, ordinal, role, name, text, content) "
            "SELECT tenant, $3, id, position, 0, role, name, text, content FROM orchestration.message "
            "WHERE tenant = $1 AND thread_id = $2 AND position <= $4",
            self._tenant,
            source.id,
            to.id,
            position,
        )
        await self._connection.execute(
            "UPDATE orchestration.thread SET last_position = $3, memory_position = $3 WHERE tenant = $1 AND id = $2",
            self._tenant,
            to.id,
            position,
        )

    async def message_of(self, thread_id: str, message_id: str) -> ThreadMessage | None:
        row = await self._connection.fetchrow(
            f"SELECT {rows.MESSAGE_COLUMNS} FROM orchestration.message "  # noqa: S608 - constants only
            "WHERE tenant = $1 AND thread_id = $2 AND id = $3 AND position IS NOT NULL",
            self._tenant,
            thread_id,
            message_id,
        )
        return None if row is None else rows.message_from(row)

    async def message_ids(self, thread_id: str) -> list[str]:
        found = await self._connection.fetch(
            "SELECT id FROM orchestration.message "
            "WHERE tenant = $1 AND thread_id = $2 AND position IS NOT NULL ORDER BY position",
            self._tenant,
            thread_id,
        )
        return [row["id"] for row in found]

    async def spaces_of(self, thread_id: str) -> list[str]:
        found = await self._connection.fetch(
            "SELECT DISTINCT v.spec #>> '{memory,space}' AS space FROM orchestration.run r "
            "JOIN orchestration.agent_version v ON v.tenant = r.tenant AND v.name = r.agent "
            "AND v.version = r.agent_version WHERE r.tenant = $1 AND r.thread_id = $2 "
            "AND NOT (v.spec #> '{memory,do_not_store}')::boolean ORDER BY 1",
            self._tenant,
            thread_id,
        )
        return [row["space"] for row in found]

    async def remove_thread(self, thread_id: str) -> list[str]:
        found = await self._connection.fetch(
            "DELETE FROM orchestration.run WHERE tenant = $1 AND thread_id = $2 RETURNING id", self._tenant, thread_id
        )
        run_ids = [row["id"] for row in found]
        for table in _OF_RUNS:
            await self._connection.execute(
                f"DELETE FROM orchestration.{table} WHERE tenant = $1 AND run_id = ANY($2::text[])",  # noqa: S608
                self._tenant,
                run_ids,
            )
        for table, column in _OF_THREADS:
            await self._connection.execute(
                f"DELETE FROM orchestration.{table} WHERE tenant = $1 AND {column} = $2",  # noqa: S608
                self._tenant,
                thread_id,
            )
        return run_ids

    async def messages(
        self,
        thread_id: str,
        *,
        after: int,
        limit: int,
        descending: bool = False,
        most_bytes: int | None = None,
    ) -> list[ThreadMessage]:
        beyond, order = ("<", "DESC") if descending else (">", "ASC")
        where = f"WHERE tenant = $1 AND thread_id = $2 AND position {beyond} $3"
        values: list[object] = [self._tenant, thread_id, after, limit]
        if most_bytes is None:
            statement = (
                f"SELECT {rows.MESSAGE_COLUMNS} FROM orchestration.message {where} ORDER BY position {order} LIMIT $4"  # noqa: S608
            )
        else:
            statement = _sized(where, order, 4)
            values.append(most_bytes)
        found = await self._connection.fetch(statement, *values)
        return [rows.message_from(row) for row in found]

    async def commit_messages(
        self, thread: Thread, messages: Sequence[Message], *, run_id: str, is_output: bool
    ) -> None:
        first = thread.last_position + 1
        await self._insert(thread.id, messages, list(range(first, first + len(messages))), run_id, is_output)

    async def add_waiting_messages(self, run: Run, messages: Sequence[Message], *, is_output: bool) -> None:
        await self._insert(run.thread_id, messages, [None] * len(messages), run.id, is_output)

    async def waiting_messages(self, run_id: str) -> list[Message]:
        found = await self._connection.fetch(
            f"SELECT {rows.MESSAGE_COLUMNS} FROM orchestration.message "  # noqa: S608 - constants only
            "WHERE tenant = $1 AND run_id = $2 AND position IS NULL ORDER BY ordinal",
            self._tenant,
            run_id,
        )
        return [rows.message_from(row).message for row in found]

    async def commit_waiting_messages(self, run: Run, thread: Thread) -> None:
        await self._connection.later(
            "UPDATE orchestration.message m SET position = $4 + waiting.place "
            "FROM (SELECT id, row_number() OVER (ORDER BY ordinal) AS place "
            "FROM orchestration.message WHERE tenant = $1 AND run_id = $2 AND position IS NULL) waiting "
            "WHERE m.tenant = $1 AND m.thread_id = $3 AND m.id = waiting.id",
            self._tenant,
            run.id,
            thread.id,
            thread.last_position,
        )

    async def write_thread(self, thread: Thread) -> None:
        await self._connection.later(
            "UPDATE orchestration.thread SET last_position = $3, memory_position = $4, active_run = $5, "
            "updated_at = $6 WHERE tenant = $1 AND id = $2",
            self._tenant,
            thread.id,
            thread.last_position,
            thread.memory_position,
            thread.active_run or None,
            thread.updated_at,
        )

    async def take_back(self, run_ids: Sequence[str], thread: Thread, at: datetime) -> list[ThreadMessage]:
        found = await self._connection.fetch(
            "DELETE FROM orchestration.message "  # noqa: S608 - constants only
            f"WHERE tenant = $1 AND thread_id = $2 AND run_id = ANY($3::text[]) RETURNING {rows.MESSAGE_COLUMNS}",
            self._tenant,
            thread.id,
            list(run_ids),
        )
        committed = sorted(
            (rows.message_from(row) for row in found if row["position"] is not None), key=lambda item: item.position
        )
        if not committed:
            return []
        left = committed[0].position - 1
        await self._connection.execute(
            "UPDATE orchestration.thread SET last_position = $3, memory_position = least(memory_position, $3), "
            "updated_at = $4 WHERE tenant = $1 AND id = $2",
            self._tenant,
            thread.id,
            left,
            at,
        )
        await self._connection.execute(
            "DELETE FROM orchestration.memory_outbox WHERE tenant = $1 AND thread_id = $2 AND from_position > $3",
            self._tenant,
            thread.id,
            left,
        )
        # What was before the run may be owed together with it.
        await self._connection.execute(
            "UPDATE orchestration.memory_outbox SET to_position = $3 "
            "WHERE tenant = $1 AND thread_id = $2 AND to_position > $3",
            self._tenant,
            thread.id,
            left,
        )
        return committed

    async def _insert(
        self,
        thread_id: str,
        messages: Sequence[Message],
        positions: Sequence[int | None],
        run_id: str,
        is_output: bool,
    ) -> None:
        await self._connection.later(
            "INSERT INTO orchestration.message "
            "(tenant, thread_id, id, role, name, text, content, position, ordinal, run_id, is_output) "
            "SELECT $1, $2, m.id, m.role, m.name, m.text, m.content, m.position, m.ordinal, $9, $10 "
            "FROM unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::bytea[], $8::bigint[]) "
            "WITH ORDINALITY AS m (id, role, name, text, content, position, ordinal)",
            self._tenant,
            thread_id,
            [message.id for message in messages],
            [message.role.value for message in messages],
            [message.name for message in messages],
            [message.text for message in messages],
            [message.wire for message in messages],
            list(positions),
            run_id or None,
            is_output,
            refusals={"message_pkey": lambda: message_taken([message.id for message in messages])},
        )


def _sized(where: str, order: str, limit: int) -> str:
    """The first messages in an order: no more than parameter ``limit`` says, nor bytes than the parameter after it.

    They end with the first that makes them larger, but not before the second one.
    """
    # Sizes are known without reading what is large.
    return (
        f"SELECT {rows.MESSAGE_COLUMNS} FROM (SELECT *, row_number() OVER sofar AS place, "  # noqa: S608 - constants only
        "sum(octet_length(content)) OVER sofar - octet_length(content) AS before "
        f"FROM (SELECT * FROM orchestration.message {where} AND position IS NOT NULL "
        f"ORDER BY position {order} LIMIT ${limit}) found WINDOW sofar AS (ORDER BY position {order})) sized "
        f"WHERE before <= ${limit + 1} OR place <= 2 ORDER BY position {order}"
    )
