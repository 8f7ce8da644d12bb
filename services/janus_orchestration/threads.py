"""Conversations: create, get, list, read, fork, delete."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime

from janus_kit.clock import Clock
from janus_kit.errors import AlreadyExists, FailedPrecondition, InvalidArgument, JanusError, NotFound, Unavailable
from janus_kit.ids import new_id
from janus_kit.telemetry.logging import get_logger
from janus_orchestration.agents import DEFAULT_AGENT
from janus_orchestration.deliveries import Deliveries
from janus_orchestration.idempotency import Once, once
from janus_orchestration.model import MOST_BYTES, Message, Removal, Thread, ThreadMessage
from janus_orchestration.ports import EventStream, Records, Store, StreamAway, ToolCodec
from janus_orchestration.removals import FINAL_AFTER_S, Removals

_log = get_logger(__name__)

_PAST_ALL = 2**62
# How long the deletion of a thread waits for memory.
_MEMORY_S = 3.0


def first_within(messages: Iterable[ThreadMessage], most_bytes: int) -> list[ThreadMessage]:
    """The messages up to the one that does not fit; the first one always."""
    kept: list[ThreadMessage] = []
    size = 0
    for message in messages:
        size += len(message.message.wire)
        if kept and size > most_bytes:
            break
        kept.append(message)
    return kept


class Threads:
    """The threads of all tenants."""

    def __init__(
        self,
        store: Store,
        stream: EventStream,
        deliveries: Deliveries,
        removals: Removals,
        tools: ToolCodec,
        clock: Clock,
    ) -> None:
        self._store = store
        self._stream = stream
        self._deliveries = deliveries
        self._removals = removals
        self._tools = tools
        self._clock = clock

    async def create(
        self, tenant: str, thread: Thread, messages: Sequence[Message], key: Once[Thread]
    ) -> Thread | bytes:
        """A new conversation with the messages that it starts with.

        Raises NotFound for an agent that is not there, AlreadyExists for an id
        that is taken.
        """
        async with self._store.tenant(tenant) as records:

            async def work() -> Thread:
                if thread.agent not in ("", DEFAULT_AGENT) and await records.agent(thread.agent) is None:
                    raise NotFound("agent", thread.agent)
                await _add(records, thread)
                if messages:
                    await records.commit_messages(thread, messages, run_id="", is_output=False)
                    await records.write_thread(replace(thread, last_position=len(messages)))
                return thread

            return await once(records, key, work)

    async def get(self, tenant: str, thread_id: str) -> Thread:
        """Raises NotFound."""
        async with self._store.tenant(tenant) as records:
            thread = await records.thread(thread_id)
        if thread is None:
            raise NotFound("thread", thread_id)
        return thread

    async def messages(
        self, tenant: str, thread_id: str, after: int, size: int, *, descending: bool
    ) -> tuple[list[ThreadMessage], bool]:
        """Committed messages beyond a position (0: from the start), and whether there are more.

        At most ``size``, and no more than a response may hold.
        """
        if descending and not after:
            after = _PAST_ALL
        async with self._store.tenant(tenant) as records:
            if await records.thread(thread_id) is None:
                raise NotFound("thread", thread_id)
            found = await records.messages(
                thread_id, after=after, limit=size + 1, descending=descending, most_bytes=MOST_BYTES
            )
        page = first_within(found[:size], MOST_BYTES)
        return page, len(found) > len(page)

    async def page(
        self, tenant: str, subject: str, agent: str, after: tuple[datetime, str] | None, size: int
    ) -> tuple[list[Thread], bool]:
        """Threads, last used first, and whether there are more; an empty name filters nothing."""
        async with self._store.tenant(tenant) as records:
            found = await records.threads(subject, agent, after, size + 1)
        return found[:size], len(found) > size

    async def fork(
        self, tenant: str, thread_id: str, at_message_id: str, new_thread_id: str, key: Once[Thread]
    ) -> Thread | bytes:
        """A new thread with the messages of another up to one of them; all of them when none is named.

        They keep their ids. Memory is not given them again: it has them from the
        thread that they were said in.
        """
        async with self._store.tenant(tenant) as records:

            async def work() -> Thread:
                source = await records.lock_thread(thread_id)
                if source is None:
                    raise NotFound("thread", thread_id)
                last = await self._last_to_copy(records, source, at_message_id)
                now = self._clock.now()
                forked = replace(
                    source,
                    id=new_thread_id or new_id("thr"),
                    created_at=now,
                    updated_at=now,
                    active_run="",
                    forked_from=source.id,
                    forked_at=last.message.id if last is not None else "",
                    parent_run="",
                )
                await _add(records, forked)
                if last is not None:
                    await records.copy_messages(source, forked, last.position)
                return forked

            return await once(records, key, work)

    async def _last_to_copy(self, records: Records, source: Thread, message_id: str) -> ThreadMessage | None:
        if not message_id:
            newest = await records.messages(source.id, after=_PAST_ALL, limit=1, descending=True)
            return newest[0] if newest else None
        found = await records.message_of(source.id, message_id)
        if found is None:
            raise NotFound("message", message_id)
        if self._tools.calls(found.message):
            raise InvalidArgument(
                "at_message_id", "must not part a tool call from its result, which is the next message"
            )
        return found

    async def delete(self, tenant: str, thread_id: str, *, erase_memory: bool, key: Once[None]) -> None:
        """Take a thread out with its messages and runs; with ``erase_memory`` its turns leave memory too.

        Raises NotFound, FailedPrecondition while a run is going on, and
        Unavailable while memory cannot be given turns that are to stay there.
        """
        if not erase_memory:
            # What the thread still owes is lost with it.
            await self._deliveries.settle(tenant, thread_id, _MEMORY_S)
        run_ids: list[str] = []
        removals: list[Removal] = []
        async with self._store.tenant(tenant) as records:

            async def work() -> None:
                thread = await records.lock_thread(thread_id)
                if thread is None:
                    raise NotFound("thread", thread_id)
                await _require_idle(records, thread)
                if erase_memory:
                    removals.extend(await _removals(records, thread))
                elif await records.debts(thread_id):
                    raise Unavailable("memory", "memory has yet to get turns of the thread")
                # What agents were asked because of it goes with it; memory has none of that.
                for below in await records.threads_below(thread_id):
                    asked = await records.lock_thread(below)
                    if asked is not None:
                        await _require_idle(records, asked)
                        run_ids.extend(await records.remove_thread(below))
                run_ids.extend(await records.remove_thread(thread_id))

            await once(records, key, work)
        with suppress(StreamAway):
            # What is left is found by nobody, and expires.
            await self._stream.drop(tenant, run_ids)
        for removal in removals:
            try:
                await self._removals.settle(tenant, removal.id, _MEMORY_S)
            except JanusError as error:
                # It is written down, and done when memory is back.
                _log.warning("erasure_waits_for_memory", reason=error.reason)


async def _add(records: Records, thread: Thread) -> None:
    if not await records.add_thread(thread):
        raise AlreadyExists("RESOURCE_EXISTS", f"thread '{thread.id}' exists already", "thread", thread.id)


async def _require_idle(records: Records, thread: Thread) -> None:
    if not thread.active_run:
        return
    active = await records.run(thread.active_run)
    state = active.state.value.upper() if active is not None else ""
    raise FailedPrecondition(
        "STATE_CONFLICT",
        f"run '{thread.active_run}' is going on in thread '{thread.id}'",
        {"state": state, "run_id": thread.active_run, "thread_id": thread.id},
        subject=f"thread/{thread.id}",
    )


async def _removals(records: Records, thread: Thread) -> list[Removal]:
    """Write down that memory is to forget what it may have of a thread."""
    ids = tuple((await records.message_ids(thread.id))[: thread.memory_position])
    spaces = await records.spaces_of(thread.id) if ids else []
    removals = [Removal(new_id("rem"), thread.id, space, ids) for space in spaces]
    for removal in removals:
        await records.add_removal(removal, final_after_s=FINAL_AFTER_S)
    return removals
