"""What is made from settings, and its exchange for a new one while calls go on.

A *build* is everything that the settings decide: providers, routes, limits,
prices, the use cases on top. A call keeps the build that it began with; calls
that begin later get the new one. A build is closed after its last call. Clients
of providers whose settings stay the same are ``Shared`` between builds, so that
their connections stay warm.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from janus_kit.telemetry.logging import get_logger

_log = get_logger(__name__)

PATIENCE_S = 3600.0
"""How long an old build waits for its calls: as long as the longest of them may take."""
CLOSE_S = 10.0
"""How long the closing of one build may take."""


class Build(Protocol):
    """Everything that is made from one version of the settings."""

    async def close(self) -> None:
        """Let go of what it holds. No call uses it any more."""
        ...


SettingsT = TypeVar("SettingsT")
BuildT = TypeVar("BuildT", bound=Build)
ClientT = TypeVar("ClientT")


class Engine(Generic[SettingsT, BuildT]):
    """Holds the build that new calls get.

    ``make`` makes a build or raises, leaving nothing open; what it raises goes
    to the caller of ``started`` or ``apply``.
    """

    def __init__(
        self, make: Callable[[SettingsT], Awaitable[BuildT]], first: BuildT, *, patience_s: float = PATIENCE_S
    ) -> None:
        self._make = make
        self._patience_s = patience_s
        self._tenure = _Tenure(first)
        self._retiring: dict[_Tenure[BuildT], asyncio.Task[None]] = {}
        self._exchange = asyncio.Lock()

    @classmethod
    async def started(
        cls,
        make: Callable[[SettingsT], Awaitable[BuildT]],
        settings: SettingsT,
        *,
        patience_s: float = PATIENCE_S,
    ) -> "Engine[SettingsT, BuildT]":
        """With the first build. ``patience_s`` is the longest that an old build is kept for its calls."""
        return cls(make, await make(settings), patience_s=patience_s)

    @property
    def current(self) -> BuildT:
        """What a call would get now, for a look at it; a call takes ``use``."""
        return self._tenure.build

    def use(self) -> AbstractContextManager[BuildT]:
        """The current build, kept open for the block: ``with engine.use() as build:``.

        Whoever is inside may enter the same block again, for work that goes on after the call.
        """
        return self._tenure

    async def apply(self, settings: SettingsT) -> None:
        """Calls that begin from now on get a build of these settings.

        Raises what making it raises; then nothing has changed. Returns without
        waiting for calls under the old build.
        """
        async with self._exchange:
            build = await self._make(settings)
            old, self._tenure = self._tenure, _Tenure(build)
            old.end()
            task = asyncio.create_task(self._retire(old), name="inference-old-build")
            self._retiring[old] = task
            task.add_done_callback(lambda _: self._retiring.pop(old))

    async def close(self) -> None:
        """Close all builds, whoever still uses them. Nothing is asked of the engine afterwards."""
        async with self._exchange:
            for old in self._retiring:
                old.give_up()
            await asyncio.gather(*self._retiring.values())
            await _closed(self._tenure.build)

    async def _retire(self, old: "_Tenure[BuildT]") -> None:
        try:
            async with asyncio.timeout(self._patience_s):
                await old.unused()
        except TimeoutError:
            _log.warning("old_build_closed_under_calls", calls=old.calls, seconds=self._patience_s)
        await _closed(old.build)


class _Tenure(Generic[BuildT]):
    """A build with a count of the calls that use it; the context manager of all of them."""

    __slots__ = ("_is_given_up", "_is_over", "_unused", "build", "calls")

    def __init__(self, build: BuildT) -> None:
        self.build = build
        self.calls = 0
        self._is_over = False
        self._is_given_up = False
        self._unused = asyncio.Event()

    def __enter__(self) -> BuildT:
        self.calls += 1
        return self.build

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.calls -= 1
        if self._is_over and not self.calls:
            self._unused.set()

    def end(self) -> None:
        """New calls do not get it any more."""
        self._is_over = True
        if not self.calls:
            self._unused.set()

    def give_up(self) -> None:
        """Wait for no call any longer."""
        self._is_given_up = True
        self._unused.set()

    async def unused(self) -> None:
        """Return once its last call is over, with those that a call began from within it."""
        while True:
            await self._unused.wait()
            if not self.calls or self._is_given_up:
                return
            self._unused.clear()


class Shared(Generic[ClientT]):
    """Clients that builds have in common: one a key, closed when the last build that holds it lets go."""

    def __init__(self, close: Callable[[ClientT], Awaitable[None]]) -> None:
        self._close = close
        self._clients: dict[Hashable, tuple[ClientT, set[Holding[ClientT]]]] = {}

    def holding(self) -> "Holding[ClientT]":
        """For one build to take its clients with, and to release them all at its end."""
        return Holding(self)

    def _take(self, holder: "Holding[ClientT]", key: Hashable, make: Callable[[], ClientT]) -> tuple[ClientT, bool]:
        made = key not in self._clients
        if made:
            self._clients[key] = (make(), set())
        client, holders = self._clients[key]
        holders.add(holder)
        return client, made

    async def _release(self, holder: "Holding[ClientT]") -> None:
        unheld = []
        for key, (client, holders) in list(self._clients.items()):
            holders.discard(holder)
            if not holders:
                del self._clients[key]
                unheld.append(client)
        for client in unheld:
            try:
                await self._close(client)
            except Exception as error:  # noqa: BLE001 - the others are closed whatever this one raised
                _log.error("client_not_closed", exc_info=error)


class Holding(Generic[ClientT]):
    """The clients of one build."""

    def __init__(self, shared: Shared[ClientT]) -> None:
        self._shared = shared
        self.new: list[ClientT] = []
        """Those that no other build had; they may want warming."""

    def take(self, key: Hashable, make: Callable[[], ClientT]) -> ClientT:
        """The client of this key, which is all that decides what ``make`` makes: name and settings."""
        client, made = self._shared._take(self, key, make)
        if made:
            self.new.append(client)
        return client

    async def release(self) -> None:
        """Close those that no other build holds. Never raises."""
        await self._shared._release(self)


async def _closed(build: Build) -> None:
    try:
        async with asyncio.timeout(CLOSE_S):
            await build.close()
    except Exception as error:  # noqa: BLE001 - the new build serves, however the old one ended
        _log.error("build_not_closed", exc_info=error)
