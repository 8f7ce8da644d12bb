"""Vectors in Chroma: two collections per tenant, space and view.

A condition costs Chroma ten times what the search does, and every search asks
for what is valid now. So rows whose time is bounded are in a collection of
their own (`timed`), and the others (`open`, nearly all) are searched without a
condition as long as no scope, kind or time on record is asked for.

The collection's name is a digest, so a caller's words never become one, and it
holds the space's incarnation and generation, so a collection that outlived its
database, or its rebuild, is never searched for another. Chroma's `upsert` merges metadata, keeping keys that
the new row does not have: every row therefore has every key, with bounds that
stand for "none". A typed filter is answered by Postgres, and Chroma searches
among the units that it allows: that costs half of a condition or less, and there
is one meaning of a filter, not two. The library takes a second to import and is imported on a
thread, on first use.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import urlsplit

from janus_kit.errors import InvalidArgument, JanusError, Unavailable
from janus_kit.libraries import library
from janus_kit.telemetry.logging import get_logger
from janus_memory.adapters.by_view import by_view
from janus_memory.model import HardFilter, Indexed, Kind, Neighbour, Space, VectorRow, View
from janus_memory.ports import Records
from janus_memory.reconciliation import Entry

T = TypeVar("T")

MAX_BATCH = 5_000
"""Rows of one request; the server refuses more than 5,461."""
_MOST_IDS = 30_000
"""Ids that a request may choose by; beyond 32,766 its server's own database refuses."""
_PAGE = 1_000
# "Since ever" and "for ever" as seconds: Chroma has no null, and all numbers of a key must be floats.
_NEVER = 1e12
_EVER = -1e12
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OPEN, _TIMED = "open", "timed"
# So few allowed ones are compared one by one, which is as fast as asking the graph;
# so many when the search has to be exact, within half a second. They are read by
# the page, since an answer is decoded in one go.
_FEW = 250
_SOME = 2_500
_READ = 125
# Wide enough that collections of thousands are searched exhaustively in effect.
_HNSW = {"space": "cosine", "ef_construction": 200, "ef_search": 400, "max_neighbors": 32}

_log = get_logger(__name__)


class ChromaIndex:
    """Implements ports.VectorIndex over a Chroma server at ``url``, for units of ``records``."""

    def __init__(self, url: str, records: Records, *, timeout_s: float) -> None:
        self._url = urlsplit(url)
        self._records = records
        self._timeout_s = timeout_s
        self._client: Any = None
        self._connecting = asyncio.Lock()
        self._collections: dict[str, Any] = {}

    async def upsert(self, tenant: str, space: Space, rows: Sequence[VectorRow]) -> None:
        for view in View:
            chosen = [row for row in rows if row.view is view]
            for start in range(0, len(chosen), MAX_BATCH):
                batch = await self._not_newer(tenant, space, view, chosen[start : start + MAX_BATCH])
                timed = [row for row in batch if _is_timed(row.about)]
                await self._put(tenant, space, view, _OPEN, [row for row in batch if not _is_timed(row.about)])
                await self._put(tenant, space, view, _TIMED, timed)
                # Time bounds come with a later write of a unit, or with another version.
                await self._remove(tenant, space, view, _OPEN, [row.about.unit for row in timed])
                changed = [row.about.unit for row in batch if row.version > 1 and not _is_timed(row.about)]
                await self._remove(tenant, space, view, _TIMED, changed)

    async def delete(self, tenant: str, space: Space, units: Sequence[int]) -> None:
        # Chroma refuses a request that names an id twice.
        units = list(dict.fromkeys(units))
        for view in View:
            for start in range(0, len(units), MAX_BATCH):
                batch = units[start : start + MAX_BATCH]
                for part in (_OPEN, _TIMED):
                    await self._remove(tenant, space, view, part, batch)

    async def search(
        self,
        tenant: str,
        space: Space,
        views: Sequence[View],
        vector: Sequence[float],
        where: HardFilter,
        limit: int,
        exact: bool,
    ) -> dict[View, list[Neighbour]]:
        among = await self._among(tenant, space, where) if where.filter is not None else None
        scope = where.scope
        asked = scope.subject or scope.agent or scope.thread or where.kinds or where.recorded_at is not None
        conditions = _conditions(where)

        async def nearest(view: View, part: str) -> list[Neighbour]:
            async def work(collection: Any) -> list[Neighbour]:
                if among is not None and len(among[part]) <= (_SOME if exact else _FEW):
                    return await _compared(collection, among[part], vector)
                limits = conditions if asked or part == _TIMED else None
                many = await collection.count() if exact else 0
                if exact and among is None and many <= _SOME:
                    # The graph loses some of many similar vectors, however many it is asked for.
                    return await _compared(collection, (await collection.get(where=limits, include=[]))["ids"], vector)
                wanted = max(limit, many)
                aim = {"query_embeddings": [list(vector)], "n_results": wanted, "include": ["distances"]}
                if among is None:
                    return _neighbours(await collection.query(**aim, where=limits))
                return await _nearest_among(collection, among[part], aim)

            return await self._on(tenant, space, view, part, work)

        async def both(view: View) -> list[Neighbour]:
            answers = await asyncio.gather(*(nearest(view, part) for part in (_OPEN, _TIMED)), return_exceptions=True)
            found: dict[int, Neighbour] = {}
            for answer in answers:
                if isinstance(answer, BaseException):
                    raise answer
                found.update((each.unit, each) for each in answer)
            return sorted(found.values(), key=lambda each: (-each.similarity, each.unit))[:limit]

        results = await asyncio.gather(*map(both, views), return_exceptions=True)
        return by_view(views, results)

    async def entries(self, tenant: str, space: Space, view: View, units: Sequence[int]) -> list[Entry]:
        async def work(collection: Any) -> list[Entry]:
            there = await collection.get(ids=[str(unit) for unit in batch], include=["metadatas"])
            pairs = zip(there["ids"], there["metadatas"], strict=True)
            return [_entry(int(name), metadata) for name, metadata in pairs]

        found: list[Entry] = []
        for start in range(0, len(units), MAX_BATCH):
            batch = units[start : start + MAX_BATCH]
            for part in (_OPEN, _TIMED):
                found.extend(await self._on(tenant, space, view, part, work))
        return found

    async def pages(self, tenant: str, space: Space, view: View) -> AsyncIterator[list[int]]:
        async def work(collection: Any) -> list[int]:
            there = await collection.get(limit=_PAGE, offset=offset, include=[])
            return [int(name) for name in there["ids"]]

        for part in (_OPEN, _TIMED):
            offset = 0
            while page := await self._on(tenant, space, view, part, work):
                yield page
                offset += len(page)

    async def vectors(self, tenant: str, space: Space, units: Sequence[int]) -> dict[int, list[float]]:
        found: dict[int, list[float]] = {}

        async def work(collection: Any) -> None:
            there = await collection.get(ids=[str(unit) for unit in batch], include=["embeddings"])
            pairs = zip(there["ids"], there["embeddings"], strict=True)
            found.update((int(name), [float(number) for number in vector]) for name, vector in pairs)

        for start in range(0, len(units), MAX_BATCH):
            batch = units[start : start + MAX_BATCH]
            for part in (_OPEN, _TIMED):
                await self._on(tenant, space, View.ALONE, part, work)
        return found

    async def drop(self, tenant: str, space: Space) -> None:
        for view in View:
            for part in (_OPEN, _TIMED):
                name = _collection_name(tenant, space, view, part)
                self._collections.pop(name, None)

                async def work(name: str = name) -> None:
                    await (await self._connected()).delete_collection(name)

                with suppress(_CollectionGone):
                    await self._guarded(work)

    async def ping(self) -> None:
        """Ask for its heartbeat, without the library: most meshes never need that."""

        async def work() -> None:
            host, port, secure = self._address
            reader, writer = await asyncio.open_connection(host, port, ssl=secure or None)
            try:
                writer.write(f"GET /api/v2/heartbeat HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
                status = await reader.readline()
            finally:
                writer.close()
            if b" 200 " not in status:
                raise ConnectionError("no heartbeat")

        await self._guarded(work)

    async def close(self) -> None:
        """Close the connections, if there ever were any."""
        client, self._client = self._client, None
        if client is not None:
            # The async client has no public close. Its HTTP connections are kept by
            # event loop, for all clients of it; another client opens its own again.
            session = client._server._clients.pop(hash(asyncio.get_running_loop()), None)
            if session is not None:
                await session.aclose()

    async def _among(self, tenant: str, space: Space, where: HardFilter) -> dict[str, list[str]]:
        """Ids of all that the whole filter allows, by the collection that they are in once indexed."""
        async with self._records.transaction(tenant) as tx:
            allowed = await tx.allowed_units(space.number, where)
        return {_OPEN: list(map(str, allowed.unbounded)), _TIMED: list(map(str, allowed.bounded))}

    async def _put(self, tenant: str, space: Space, view: View, part: str, rows: Sequence[VectorRow]) -> None:
        async def work(collection: Any) -> None:
            await collection.upsert(
                ids=[str(row.about.unit) for row in rows],
                embeddings=[list(row.vector) for row in rows],
                metadatas=[_metadata(row.about, row.version) for row in rows],
            )

        if rows:
            await self._on(tenant, space, view, part, work)

    async def _remove(self, tenant: str, space: Space, view: View, part: str, units: Sequence[int]) -> None:
        async def work(collection: Any) -> None:
            await collection.delete(ids=[str(unit) for unit in units])

        if units:
            await self._on(tenant, space, view, part, work)

    async def _not_newer(self, tenant: str, space: Space, view: View, rows: Sequence[VectorRow]) -> list[VectorRow]:
        """Rows that no higher version is in place of. Nobody else writes to the space meanwhile."""
        if all(row.version == 1 for row in rows):
            # A unit holds one version of a record; the first cannot replace another.
            return list(rows)

        async def work(collection: Any) -> dict[int, int]:
            there = await collection.get(ids=[str(row.about.unit) for row in rows], include=["metadatas"])
            pairs = zip(there["ids"], there["metadatas"], strict=True)
            return {int(name): int(metadata["version"]) for name, metadata in pairs}

        versions: dict[int, int] = {}
        for part in (_OPEN, _TIMED):
            versions.update(await self._on(tenant, space, view, part, work))
        return [row for row in rows if versions.get(row.about.unit, 0) <= row.version]

    async def _on(self, tenant: str, space: Space, view: View, part: str, work: Callable[[Any], Awaitable[T]]) -> T:
        name = _collection_name(tenant, space, view, part)

        async def attempt() -> T:
            collection = self._collections.get(name)
            if collection is None:
                client = await self._connected()
                collection = await client.get_or_create_collection(
                    name, configuration={"hnsw": _HNSW}, embedding_function=None
                )
                self._collections[name] = collection
            return await work(collection)

        try:
            return await self._guarded(attempt)
        except _CollectionGone:
            # Somebody dropped it, or Chroma lost its disk: begin a new one. The
            # reconciler fills it from the records.
            self._collections.pop(name, None)
            return await self._guarded(attempt)

    async def _connected(self) -> Any:
        async with self._connecting:
            if self._client is None:
                self._client = await self._connect()
            return self._client

    async def _connect(self) -> Any:
        host, port, secure = self._address
        chromadb = await library("chromadb")
        # Without its telemetry. Unset, certificates are not checked.
        settings = chromadb.config.Settings(anonymized_telemetry=False, chroma_server_ssl_verify=secure or None)
        return await chromadb.AsyncHttpClient(host=host, port=port, ssl=secure, settings=settings)

    @property
    def _address(self) -> tuple[str, int, bool]:
        """Host, port, and whether TLS is spoken."""
        secure = self._url.scheme == "https"
        return self._url.hostname or "127.0.0.1", self._url.port or (443 if secure else 80), secure

    async def _guarded(self, work: Callable[[], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await work()
        except JanusError:
            raise
        except Exception as error:
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> Exception:
        name = type(error).__name__
        if name in {"NotFoundError", "InvalidCollectionException"}:
            return _CollectionGone()
        if name in {"InvalidDimensionException", "InvalidArgumentError"} or isinstance(error, TypeError):
            _log.warning("chroma_refused", error=name)
            return InvalidArgument("embedding", "was refused by the vector index")
        if not isinstance(error, TimeoutError):
            _log.warning("chroma_failed", error=name)
        return Unavailable("chroma", "chroma does not answer")


class _CollectionGone(Exception):
    """The collection that we knew is not there any more."""


async def _compared(collection: Any, ids: Sequence[str], vector: Sequence[float]) -> list[Neighbour]:
    """All of the ids that are there, one by one: the graph loses some of many equal vectors."""
    found: list[Neighbour] = []
    for start in range(0, len(ids), _READ):
        page = await collection.get(ids=list(ids[start : start + _READ]), include=["embeddings"])
        if page["ids"]:
            similar = cosines(vector, page["embeddings"])
            found += map(Neighbour, map(int, page["ids"]), similar)
    return found


async def _nearest_among(collection: Any, ids: Sequence[str], aim: Mapping[str, Any]) -> list[Neighbour]:
    """The nearest of each so many ids: those of all are among them."""
    found: list[Neighbour] = []
    for start in range(0, len(ids), _MOST_IDS):
        found += await _query_among(collection, ids[start : start + _MOST_IDS], aim)
    return found


async def _query_among(collection: Any, ids: Sequence[str], aim: Mapping[str, Any]) -> list[Neighbour]:
    """A query among ids. Chroma fails one that names an id it does not have, and asking first costs more than that."""
    try:
        return _neighbours(await collection.query(**aim, ids=ids))
    except Exception as error:
        if type(error).__name__ != "InternalError":
            raise
    there = (await collection.get(ids=ids, include=[]))["ids"]
    return _neighbours(await collection.query(**aim, ids=there)) if there else []


def _neighbours(answer: Any) -> list[Neighbour]:
    """What has a distance: Chroma gives none where its 32-bit numbers overflow, and those of the others are right."""
    pairs = list(zip(answer["ids"][0], answer["distances"][0], strict=True))
    near = [Neighbour(int(name), 1.0 - float(distance)) for name, distance in pairs if distance is not None]
    if len(near) < len(pairs):
        _log.warning("chroma_gave_no_distance", units=[int(name) for name, distance in pairs if distance is None][:10])
    return near


def cosines(vector: Sequence[float], others: Any) -> list[float]:
    """Cosine similarity with each of the others; 0 where one of the two is zero."""
    import numpy as np

    aim, rows = np.asarray(vector, float), np.asarray(others, float)
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(aim)
    found: list[float] = np.divide(rows @ aim, norms, out=np.zeros(len(rows)), where=norms > 0).tolist()
    return found


def _is_timed(about: Indexed) -> bool:
    """Whether it depends on the time if the unit is allowed."""
    return any((about.valid_from, about.valid_to, about.expires_at, about.superseded_at))


def _collection_name(tenant: str, space: Space, view: View, part: str) -> str:
    named = f"{tenant}\0{space.incarnation}"
    if space.generation > 1:
        named += f"\0{space.generation}"
    digest = hashlib.blake2b(named.encode(), digest_size=20).hexdigest()
    return f"janus-{digest}-{int(view)}-{part}"


def _metadata(about: Indexed, version: int) -> Mapping[str, str | int | float]:
    return {
        "version": version,
        "kind": int(about.kind),
        "subject": about.subject,
        "agent": about.agent,
        "thread": about.thread,
        "recorded_at": about.recorded_at.timestamp(),
        "superseded_at": _seconds(about.superseded_at, _NEVER),
        "valid_from": _seconds(about.valid_from, _EVER),
        "valid_to": _seconds(about.valid_to, _NEVER),
        "expires_at": _seconds(about.expires_at, _NEVER),
    }


def _entry(unit: int, metadata: Mapping[str, Any]) -> Entry:
    """What `_metadata` was made from; its times are exact to a millisecond."""
    recorded_at = _time(metadata["recorded_at"])
    assert recorded_at is not None
    about = Indexed(
        unit=unit,
        kind=Kind(int(metadata["kind"])),
        subject=str(metadata["subject"]),
        agent=str(metadata["agent"]),
        thread=str(metadata["thread"]),
        recorded_at=recorded_at,
        valid_from=_time(metadata["valid_from"]),
        valid_to=_time(metadata["valid_to"]),
        expires_at=_time(metadata["expires_at"]),
        superseded_at=_time(metadata["superseded_at"]),
    )
    return Entry(about, int(metadata["version"]))


def _time(seconds: float) -> datetime | None:
    return None if abs(seconds) >= _NEVER else _EPOCH + timedelta(seconds=seconds)


def _seconds(when: datetime | None, otherwise: float) -> float:
    return otherwise if when is None else when.timestamp()


def _conditions(where: HardFilter) -> Mapping[str, Any]:
    """A hard filter in Chroma's form; equal to `allowed` of the SQL adapter."""
    found: list[Mapping[str, Any]] = [
        {column: {"$eq": value}}
        for column, value in (
            ("subject", where.scope.subject),
            ("agent", where.scope.agent),
            ("thread", where.scope.thread),
        )
        if value
    ]
    if where.kinds:
        found.append({"kind": {"$in": [int(kind) for kind in where.kinds]}})
    at = where.valid_at.timestamp()
    found.append({"valid_from": {"$lte": at}})
    found.append({"valid_to": {"$gt": at}})
    found.append({"expires_at": {"$gt": where.now.timestamp()}})
    if where.recorded_at is None:
        found.append({"superseded_at": {"$eq": _NEVER}})
    else:
        known = where.recorded_at.timestamp()
        found.append({"recorded_at": {"$lte": known}})
        found.append({"superseded_at": {"$gt": known}})
    return {"$and": found}
