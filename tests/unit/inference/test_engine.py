"""The exchange of what is made from settings while calls go on."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from janus_inference.engine import Engine, Holding, Shared
from janus_kit.settings import SettingsError


class Connection:
    """Something that must be closed once, and not while it is used."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.closed = 0

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.closed += 1


@dataclass
class Build:
    """Connections to the addresses that the settings name."""

    holding: Holding[Connection]
    connections: dict[str, Connection]
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def close(self) -> None:
        await self.holding.release()
        self.closed.set()


class Maker:
    """Makes builds from lists of addresses; `bad` cannot be connected to."""

    def __init__(self) -> None:
        self.shared: Shared[Connection] = Shared(Connection.close)

    async def __call__(self, addresses: list[str]) -> Build:
        holding = self.shared.holding()
        try:
            connections = {address: holding.take(address, _connecting(address)) for address in addresses}
        except BaseException:
            await holding.release()
            raise
        return Build(holding, connections)


def _connecting(address: str) -> Callable[[], Connection]:
    def connect() -> Connection:
        if address == "bad":
            raise SettingsError(["providers.x.profile: no such profile"])
        return Connection(address)

    return connect


@asynccontextmanager
async def started(*addresses: str, patience_s: float = 60.0) -> AsyncIterator[Engine[list[str], Build]]:
    engine = await Engine.started(Maker(), list(addresses), patience_s=patience_s)
    try:
        yield engine
    finally:
        await engine.close()


async def test_calls_that_begin_after_an_exchange_get_the_new_build() -> None:
    async with started("a") as engine:
        await engine.apply(["b"])
        with engine.use() as build:
            assert set(build.connections) == {"b"}
        assert engine.current is build


async def test_a_call_keeps_the_build_that_it_began_with_open() -> None:
    async with started("a") as engine:
        with engine.use() as old:
            await engine.apply(["b"])
            with engine.use() as new:
                assert new is not old
            await asyncio.sleep(0)
            assert not old.closed.is_set()
            assert old.connections["a"].closed == 0
        async with asyncio.timeout(10):
            await old.closed.wait()
        assert old.connections["a"].closed == 1
        assert new.connections["b"].closed == 0


async def test_the_last_of_several_calls_closes_the_old_build() -> None:
    async with started("a") as engine:
        first, second = engine.use(), engine.use()
        with first as old:
            with second, pytest.raises(ZeroDivisionError), engine.use():
                await engine.apply(["b"])
                raise ZeroDivisionError
            await asyncio.sleep(0)
            assert not old.closed.is_set()
        async with asyncio.timeout(10):
            await old.closed.wait()


async def test_work_that_goes_on_after_its_call_keeps_the_build() -> None:
    async with started("a") as engine:
        call = engine.use()
        with call as old:
            await engine.apply(["b"])
        with call:  # before the old build's end could be noticed
            for _ in range(10):
                await asyncio.sleep(0)
            assert not old.closed.is_set()
        async with asyncio.timeout(10):
            await old.closed.wait()


async def test_a_build_that_nobody_uses_is_closed_at_once() -> None:
    async with started("a") as engine:
        old = engine.current
        await engine.apply(["b"])
        async with asyncio.timeout(10):
            await old.closed.wait()


async def test_a_client_with_the_same_settings_is_carried_over() -> None:
    async with started("a", "b") as engine:
        old = engine.current
        await engine.apply(["b", "c"])
        async with asyncio.timeout(10):
            await old.closed.wait()
        new = engine.current
        assert new.connections["b"] is old.connections["b"]
        assert [new.connections[name].closed for name in "bc"] == [0, 0]
        assert old.connections["a"].closed == 1
        assert [client.address for client in new.holding.new] == ["c"]


async def test_settings_that_give_no_build_change_nothing() -> None:
    async with started("a") as engine:
        before = engine.current
        with pytest.raises(SettingsError, match="no such profile"):
            await engine.apply(["a", "b", "bad"])
        assert engine.current is before
        assert before.connections["a"].closed == 0
        await engine.apply(["a", "b"])
        assert [client.address for client in engine.current.holding.new] == ["b"], "the refused one left nothing open"


async def test_an_old_build_is_closed_under_a_call_that_takes_longer_than_patience() -> None:
    async with started("a", patience_s=0.01) as engine:
        with engine.use() as old:
            await engine.apply(["b"])
            async with asyncio.timeout(10):
                await old.closed.wait()


async def test_closing_closes_every_build_once() -> None:
    async with started("a") as engine:
        first = engine.use()
        first.__enter__()
        builds = [engine.current]
        for name in ("b", "c"):
            await engine.apply([name])
            builds.append(engine.current)
    assert [build.closed.is_set() for build in builds] == [True, True, True]
    assert [client.closed for build in builds for client in build.connections.values()] == [1, 1, 1]
    first.__exit__(None, None, None)


async def test_a_build_whose_closing_fails_does_not_stop_the_new_one() -> None:
    class Broken:
        async def close(self) -> None:
            raise OSError

    async def make(number: int) -> Broken:
        return Broken()

    engine = await Engine.started(make, 1)
    old = engine.current
    await engine.apply(2)
    assert engine.current is not old
    await engine.close()


async def test_one_client_whose_closing_fails_does_not_keep_the_others_open() -> None:
    closed: list[str] = []

    async def close(address: str) -> None:
        if address == "a":
            raise OSError
        closed.append(address)

    shared: Shared[str] = Shared(close)
    holding = shared.holding()
    for address in "abc":
        holding.take(address, lambda address=address: address)  # type: ignore[misc]
    await holding.release()
    assert closed == ["b", "c"]


async def test_exchanges_at_the_same_time_come_one_after_the_other() -> None:
    async with started("a") as engine:
        await asyncio.gather(*(engine.apply([name]) for name in "bcdef"))
        assert set(engine.current.connections) == {"f"}


async def test_old_builds_are_forgotten() -> None:
    async with started("a") as engine:
        old = engine.current
        await engine.apply(["b"])
        async with asyncio.timeout(10):
            await old.closed.wait()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gc.collect()
        referrers = [each for each in gc.get_referrers(old) if type(each).__name__ == "_Tenure"]
        assert referrers == []
