"""Conversations: create, get, read."""

from collections.abc import Iterable, Sequence

from janus_kit.errors import AlreadyExists, NotFound
from janus_orchestration.agents import DEFAULT_AGENT
from janus_orchestration.idempotency import Once, once
from janus_orchestration.model import MOST_BYTES, Message, Thread, ThreadMessage
from janus_orchestration.ports import Store

_PAST_ALL = 2**62


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

    def __init__(self, store: Store) -> None:
        self._store = store

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
                if not await records.add_thread(thread):
                    raise AlreadyExists("RESOURCE_EXISTS", f"thread '{thread.id}' exists already", "thread", thread.id)
                if messages:
                    await records.commit_messages(thread, messages, run_id="", is_output=False, at=thread.created_at)
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
