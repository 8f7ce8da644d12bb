"""The whole stack as one context manager: start, supervise, publish, stop in order."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from janus_app.embedded.binaries import check_platform
from janus_app.embedded.chroma import Chroma
from janus_app.embedded.errors import EmbeddedError
from janus_app.embedded.folder import DataFolder, remove_socket, socket_path
from janus_app.embedded.postgres import Postgres
from janus_app.embedded.state import State, load
from janus_app.embedded.supervisor import Supervisor
from janus_app.embedded.valkey import Valkey


@dataclass(frozen=True)
class Addresses:
    """Where the three parts are. The URLs hold passwords, so repr() leaves them out.

    ``postgres_url`` is a superuser's, for a database of our own;
    ``chroma_url`` is None when there is no Chroma.
    """

    postgres_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    chroma_url: str | None


class Stack:
    """The running stack. Its addresses do not change while it runs."""

    def __init__(self, folder: DataFolder, supervisors: Sequence[Supervisor], addresses: Addresses) -> None:
        self.addresses = addresses
        self.data = folder.path
        self._folder = folder
        self._supervisors = supervisors
        started = {supervisor.part.name: supervisor.part.port for supervisor in supervisors}
        self._state = replace(
            State.ours(load(folder.path).ports | started),
            postgres_url=addresses.postgres_url,
            redis_url=addresses.redis_url,
            chroma_url=addresses.chroma_url,
        )
        folder.write_state(self._state)

    @property
    def socket(self) -> Path:
        """Where the mesh's Unix socket belongs; see `socket_path`."""
        return socket_path(self.data)

    @property
    def process_ids(self) -> dict[str, int | None]:
        """The servers started here by name ("postgres", "redis", "chroma"); None while one is down."""
        return {supervisor.part.name: supervisor.pid for supervisor in self._supervisors}

    def publish(self, **values: str | None) -> None:
        """Add values such as ``grpc="127.0.0.1:50051"`` to the state file; None takes one away."""
        self._state = self._state.with_published(values)
        self._folder.write_state(self._state)


@asynccontextmanager
async def stack(
    data: Path,
    *,
    postgres_url: str | None = None,
    redis_url: str | None = None,
    chroma_url: str | None = None,
    chroma: bool = True,
) -> AsyncIterator[Stack]:
    """Run Postgres, Valkey and Chroma on the folder ``data``, all bound to loopback.

    A URL that is given replaces that part, which is then not started and not
    looked at; ``chroma=False`` leaves Chroma out. Within the block a server
    that dies is started again on its port; leaving the block stops them all.
    Raises DataFolderInUse when another process runs on the folder, and
    EmbeddedError for everything else that prevents a start.
    """
    folder = DataFolder(data)
    with folder.held():
        remove_socket(folder.path)
        wanted: list[type[Postgres | Valkey | Chroma]] = []
        if postgres_url is None:
            wanted.append(Postgres)
        if redis_url is None:
            wanted.append(Valkey)
        if chroma_url is None and chroma:
            wanted.append(Chroma)
        if wanted:
            check_platform()
        before, taken = load(folder.path).ports, set[int]()
        parts = [make(folder, before.get(make.name, 0)) for make in wanted]
        supervisors = [Supervisor(part, taken) for part in parts]
        try:
            await _start(supervisors)
            urls = {supervisor.part.name: supervisor.part.url for supervisor in supervisors}
            yield Stack(
                folder,
                supervisors,
                Addresses(
                    postgres_url=postgres_url or urls["postgres"],
                    redis_url=redis_url or urls["redis"],
                    chroma_url=chroma_url or urls.get("chroma"),
                ),
            )
        finally:
            await _finish(_stop(supervisors))
            remove_socket(folder.path)
            # Nobody serves now. The ports are kept for the next start.
            with suppress(EmbeddedError):  # a full disk; our process id in the file will be dead soon
                folder.write_state(State(ports=load(folder.path).ports))


async def _start(supervisors: Sequence[Supervisor]) -> None:
    """All at once; the first failure ends the others' starts and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for supervisor in supervisors:
                group.create_task(supervisor.start())
    except ExceptionGroup as failures:
        # Not "except*": what is raised there comes out in a group again.
        known, _ = failures.split(EmbeddedError)
        raise (known or failures).exceptions[0] from None


async def _stop(supervisors: Sequence[Supervisor]) -> None:
    """The last one first: Chroma, Valkey, then Postgres, which holds the truth."""
    for supervisor in reversed(supervisors):
        await supervisor.stop()


async def _finish(work: Coroutine[Any, Any, None]) -> None:
    """Carry it out to its end, also when we are cancelled meanwhile (and then say so)."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()
