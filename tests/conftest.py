"""Fixtures shared by all tests: the real Postgres, Valkey and Chroma.

One stack per pytest process (per xdist worker), started on first use and
stopped at the end. It runs on a thread with an event loop of its own, so that
tests may use any loop they like.
"""

import asyncio
import itertools
import os
import signal
import threading
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from pydantic import SecretStr
from tests.fakes.data_folder import data_folder, sweep
from tests.fakes.stopwatch import RanFor, beating

from janus_app.embedded import Addresses, Stack
from janus_app.embedded import stack as embedded_stack
from janus_kit.migrations import migrate
from janus_kit.settings import PostgresSettings

if TYPE_CHECKING:
    from tests.fakes.providers.setups import Stores

# How fast inputs are made says something of the machine, and of the first test that needs Unicode's tables.
settings.register_profile("janus", suppress_health_check=[HealthCheck.too_slow], deadline=None)
settings.load_profile("janus")

# Every HTTP client loads what the machine trusts, which takes 20 ms. No test asks a server that these vouch for.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = os.devnull

T = TypeVar("T")
_MIGRATED = "janus_migrated"
_redis_databases = itertools.count()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Half as many again as there are cores: a third of the time a worker waits for what others do or do not do."""
    return None if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else (os.cpu_count() or 1) * 3 // 2


class StackThread:
    """The embedded stack on a thread of its own."""

    def __init__(self, data: Path, **options: Any) -> None:
        self.data = data
        self._options = options
        self._loop = asyncio.new_event_loop()
        self._started: Future[Stack] = Future()
        self._stop = asyncio.Event()
        # The servers die with this thread; as a daemon it never keeps pytest from ending.
        self._thread = threading.Thread(target=self._work, name="embedded stack", daemon=True)

    def start(self) -> "StackThread":
        self._thread.start()
        self._started.result()
        return self

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def stack(self) -> Stack:
        return self._started.result()

    @property
    def addresses(self) -> Addresses:
        return self.stack.addresses

    def kill(self, part: str) -> int:
        """SIGKILL to "postgres", "redis" or "chroma"; returns the killed process's id."""
        pid = self.stack.process_ids[part]
        assert pid is not None, f"{part} is down already"
        os.kill(pid, signal.SIGKILL)
        return pid

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the stack's loop, whatever loop the caller is in."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _work(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        try:
            async with embedded_stack(self.data, **self._options) as running:
                self._started.set_result(running)
                await self._stop.wait()
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)


@contextmanager
def _stack_thread() -> Iterator[StackThread]:
    with data_folder() as folder:
        running = StackThread(folder).start()
        try:
            yield running
        finally:
            running.stop()


@pytest.fixture(scope="session")
def stack_thread() -> Iterator[StackThread]:
    """The session's stack with its controls; tests that kill a part take `own_stack` instead."""
    sweep()
    with _stack_thread() as running:
        yield running


@pytest.fixture(scope="session")
def stack(stack_thread: StackThread) -> Addresses:
    """Addresses of the real servers: ``postgres_url``, ``redis_url``, ``chroma_url``."""
    return stack_thread.addresses


@pytest.fixture
def own_stack() -> Iterator[StackThread]:
    """A stack for one test alone, which may kill its parts (`StackThread.kill`)."""
    with _stack_thread() as running:
        yield running


@pytest.fixture(scope="session")
def _migrated(stack_thread: StackThread) -> str:
    """A database with the tables of all services, to be copied: that is faster than to migrate each."""
    url = stack_thread.addresses.postgres_url
    stack_thread.run(_execute(url, f"CREATE DATABASE {_MIGRATED}"))
    services = ["janus_inference", "janus_memory", "janus_orchestration"]
    stack_thread.run(migrate(PostgresSettings(url=SecretStr(_at(url, _MIGRATED))), services))
    return _MIGRATED


@pytest.fixture(scope="module")
def postgres_url(stack_thread: StackThread, _migrated: str) -> Iterator[str]:
    """A superuser's URL of a database for this test module: migrated, without rows."""
    with _database(stack_thread, _migrated) as url:
        yield url


@pytest.fixture
def own_url(stack_thread: StackThread, _migrated: str) -> Iterator[str]:
    """The same for one test alone: no run that another test left behind is taken over in it."""
    with _database(stack_thread, _migrated) as url:
        yield url


@pytest.fixture(scope="module")
def empty_url(stack_thread: StackThread) -> Iterator[str]:
    """A superuser's URL of a database without anything, for this test module."""
    with _database(stack_thread, "template1") as url:
        yield url


@pytest.fixture(scope="module")
def redis_url(stack_thread: StackThread) -> str:
    """The URL of an empty Redis database (by number) for this test module."""
    url = f"{stack_thread.addresses.redis_url.rpartition('/')[0]}/{next(_redis_databases) % 15 + 1}"
    stack_thread.run(_flush(url))
    return url


@pytest.fixture(scope="module")
def chroma_url(stack_thread: StackThread) -> str:
    """The session's Chroma server. It is shared: use tenants or collections of your own."""
    url = stack_thread.addresses.chroma_url
    assert url is not None
    return url


@pytest.fixture
async def stores(postgres_url: str, redis_url: str) -> AsyncIterator["Stores"]:
    """What inference keeps things in, on the module's database and Redis; nothing is asked of a provider."""
    from tests.fakes.providers.setups import real_stores

    async with real_stores(postgres_url, redis_url) as opened:
        yield opened


@pytest.fixture
async def ran_for() -> AsyncIterator[RanFor]:
    """Measures how long something took on a machine that may stand still meanwhile."""
    async with beating() as measured:
        yield measured


@contextmanager
def _database(stack: StackThread, template: str) -> Iterator[str]:
    url, name = stack.addresses.postgres_url, f"test_{uuid.uuid4().hex[:16]}"
    stack.run(_execute(url, f'CREATE DATABASE "{name}" TEMPLATE {template} STRATEGY FILE_COPY'))
    yield _at(url, name)
    stack.run(_execute(url, f'DROP DATABASE "{name}" WITH (FORCE)'))


def _at(url: str, database: str) -> str:
    return f"{url.rpartition('/')[0]}/{database}"


async def _execute(url: str, statement: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _flush(url: str) -> None:
    import redis.asyncio

    client = redis.asyncio.Redis.from_url(url)
    try:
        await client.flushdb()
    finally:
        await client.aclose()
