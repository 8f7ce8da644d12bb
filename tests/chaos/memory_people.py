"""One person's memories: what is done with them in turn, and what has to be found of them afterwards."""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import uuid4

import grpc
from tests.fakes.memory_service import Caller, texts

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import record_pb2, scope_pb2

T = TypeVar("T")

HALLS = 3
"""Threads of a space that everybody talks in."""
_ALL = 1_000


class Violated(Exception):
    """Something is not as it was acknowledged to be."""


@dataclass
class Kept:
    """A memory: what each of its versions says, and whether it still can be found."""

    said: list[str]
    found: bool = True
    purged: bool = False


@dataclass
class Person:
    """A subject that is nowhere else, whose every text holds a word that is in no other.

    ``dice`` alone decides what it does. Nothing of what it expects changes
    before the write that changes it is acknowledged. ``until_done`` makes a
    call again and again, until it is answered.
    """

    until_done: Any
    space: str
    dice: random.Random
    subject: str = field(default_factory=lambda: f"p{uuid4().hex[:12]}x0")
    turns: list[str] = field(default_factory=list)
    halls: dict[str, list[str]] = field(default_factory=dict)
    memories: dict[str, Kept] = field(default_factory=dict)
    blocks: dict[str, tuple[int, str]] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    """Words that must be nowhere any more."""
    erased: list[str] = field(default_factory=list)
    """Ids of memories that must be nowhere any more."""
    acknowledged: dict[str, int] = field(default_factory=dict)
    _count: Any = field(default_factory=itertools.count)
    _token: str = ""

    def steps(self) -> list[Callable[[], Awaitable[None]]]:
        """What it will do."""
        chosen = self.dice.choices(
            [self.append, self.remember, self.update, self.forget, self.put_block, self.erase],
            [30, 25, 20, 12, 10, 3],
            k=self.dice.randint(5, 11),
        )
        return [*chosen, self.erase] if self.dice.random() < 0.4 else chosen

    # What is done.

    async def append(self) -> None:
        """A few turns, mostly in a thread of its own."""
        hall = f"hall{self.dice.randrange(HALLS)}" if self.dice.random() < 0.3 else ""
        said = [self._text() for _ in range(self.dice.randint(1, 5))]
        done = await self._write(
            "append",
            lambda desk, request_id: desk.append(hall or self.subject, *said, scope=self._where, request_id=request_id),
        )
        (self.halls.setdefault(hall, []) if hall else self.turns).extend(said)
        self._token = done.consistency_token

    async def remember(self) -> None:
        said = [self._text() for _ in range(self.dice.randint(1, 3))]
        waits = scope_pb2.CONSISTENCY_READ_YOUR_WRITES if self.dice.random() < 0.2 else scope_pb2.CONSISTENCY_DURABLE
        done = await self._write(
            "remember",
            lambda desk, request_id: desk.remember(*said, scope=self._where, request_id=request_id, consistency=waits),
        )
        for memory_id, text in zip(done.memory_ids, said, strict=True):
            self.memories[memory_id] = Kept([text])
        self._token = done.consistency_token

    async def update(self) -> None:
        memory_id = self._one()
        if memory_id is None:
            await self.remember()
            return
        kept, text = self.memories[memory_id], self._text()
        request = pb.UpdateMemoryRequest(
            memory=record_pb2.Memory(id=memory_id, text=text), expected_version=len(kept.said)
        )
        request.update_mask.paths.append("text")
        done = await self._write("update", _call("UpdateMemory", request))
        kept.said.append(text)
        self._token = done.consistency_token

    async def forget(self) -> None:
        memory_id = self._one()
        if memory_id is None:
            await self.remember()
            return
        request = pb.ForgetMemoryRequest(memory_id=memory_id, purge=self.dice.random() < 0.4)
        await self._write("forget", _call("ForgetMemory", request))
        kept = self.memories[memory_id]
        kept.found, kept.purged = False, request.purge
        if request.purge:
            self.gone += map(_word, kept.said)

    async def put_block(self) -> None:
        name = self.dice.choice(["persona", "plan"])
        version, before = self.blocks.get(name, (0, ""))
        text = self._text()
        block = record_pb2.Block(scope=scope_pb2.Scope(**self._where), name=name, text=text)
        await self._write("block", _call("PutBlock", pb.PutBlockRequest(block=block, expected_version=version)))
        self.blocks[name] = (version + 1, text)
        if before:
            self.gone.append(_word(before))

    async def erase(self) -> None:
        """All of it so far; it may go on afterwards, under the same name."""
        request = pb.EraseRequest(scope=scope_pb2.Scope(subject=self.subject))
        receipt = (await self._write("erase", _call("Erase", request))).receipt
        removed = {count.store: count.removed for count in receipt.counts}
        versions = [text for kept in self.memories.values() for text in kept.said]
        # A forgotten memory has one version more, which says so; a purged one is nobody's.
        rows = sum(len(kept.said) + (not kept.found) for kept in self.memories.values() if not kept.purged)
        self._same("turns of the receipt", removed["postgres.turn"], len(self._said))
        self._same("memories of the receipt", removed["postgres.memory"], rows)
        self._same("left by the receipt", [count for count in receipt.counts if count.remaining], [])
        self.gone += map(_word, [*self._said, *versions, *(text for _, text in self.blocks.values())])
        # A purged memory is nobody's: its bare history stays.
        self.erased += [memory_id for memory_id, kept in self.memories.items() if not kept.purged]
        self.turns, self.halls, self.memories, self.blocks = [], {}, {}, {}

    # What has to be found.

    async def look(self) -> None:
        """Through one of the ways to read, as it happens."""
        await self.dice.choice([self.window, self.recall, self.list, self.history, self.read_blocks])()

    async def look_everywhere(self) -> None:
        for way in (self.window, self.recall, self.list, self.history, self.read_blocks, self.export):
            await way()

    async def window(self) -> None:
        found = await self._read(
            lambda desk: desk.window(self.subject, scope={"space": self.space}, max_messages=_ALL, max_tokens=1_000_000)
        )
        self._same("window", texts(found), self.turns)

    async def recall(self) -> None:
        """Everything, indexed or not: a recall with the last write's token waits for it, or scans."""
        found = await self._read(
            lambda desk: desk.recall(
                "the heron of the pond", scope=self._where, limit=200, exact=True, consistency_token=self._token
            )
        )
        self._same("recall", sorted(texts(found)), sorted([*self._said, *self._current()]))

    async def list(self) -> None:
        inactive = self.dice.random() < 0.5
        request = pb.ListMemoriesRequest(
            scope=scope_pb2.Scope(**self._where), page_size=_ALL, include_inactive=inactive
        )
        versions = [text for kept in self.memories.values() if kept.found for text in kept.said]
        found = await self._read(lambda desk: desk.call("ListMemories", request))
        self._same(
            "list", sorted(memory.text for memory in found.memories), sorted(versions if inactive else self._current())
        )

    async def history(self) -> None:
        for memory_id, kept in self.memories.items():
            request = pb.GetHistoryRequest(memory_id=memory_id, page_size=100)
            found = await self._read(lambda desk, request=request: desk.call("GetHistory", request))
            said = [version.memory.text for version in found.versions]
            expected = [*kept.said, *([] if kept.found else [kept.said[-1]])]
            self._same("history", said, [""] * len(expected) if kept.purged else expected)
        for memory_id in self.erased:
            request = pb.GetHistoryRequest(memory_id=memory_id)
            self._same("erased history", await self._absent("GetHistory", request), True)
        for memory_id, kept in self.memories.items():
            request = pb.GetMemoryRequest(memory_id=memory_id)
            self._same("memory away", await self._absent("GetMemory", request), not kept.found)

    async def read_blocks(self) -> None:
        request = pb.ListBlocksRequest(scope=scope_pb2.Scope(**self._where))
        found = await self._read(lambda desk: desk.call("ListBlocks", request))
        self._same("blocks", {block.name: (block.version, block.text) for block in found.blocks}, self.blocks)

    async def export(self) -> None:
        request = pb.ExportRequest(scope=scope_pb2.Scope(**self._where), include_history=True)

        async def read(desk: Caller) -> list[Any]:
            return [each async for each in desk.stub.Export(request, metadata=desk.metadata, timeout=20)]

        found: dict[str, list[str]] = {}
        for each in await self._read(read):
            kind = each.WhichOneof("record")
            record = getattr(each, kind)
            text = {
                "turn": lambda record: record.message.parts[0].text,
                "version": lambda record: record.memory.text,
            }.get(kind, lambda record: getattr(record, "text", ""))(record)
            found.setdefault(kind, []).append(text)
        self._same("exported turns", sorted(found.get("turn", [])), sorted(self._said))
        self._same("exported memories", sorted(found.get("memory", [])), sorted(self._current()))
        self._same("exported blocks", sorted(found.get("block", [])), sorted(text for _, text in self.blocks.values()))
        old = [text for kept in self.memories.values() if not kept.purged for text in kept.said[:-1]]
        last = [kept.said[-1] for kept in self.memories.values() if not kept.purged and not kept.found]
        versions = [text for text in found.get("version", []) if text]
        self._same("exported history", sorted(versions), sorted([*old, *last, *last]))

    @property
    def texts(self) -> list[str]:
        """What is to be found of it."""
        return [*self._said, *self._current(), *(text for _, text in self.blocks.values())]

    @property
    def _said(self) -> list[str]:
        return [*self.turns, *itertools.chain(*self.halls.values())]

    @property
    def _where(self) -> dict[str, str]:
        return {"space": self.space, "subject": self.subject}

    def _text(self) -> str:
        return f"{self.subject}n{next(self._count)}e the heron of the pond"

    def _one(self) -> str | None:
        found = [memory_id for memory_id, kept in self.memories.items() if kept.found]
        return self.dice.choice(found) if found else None

    def _current(self) -> list[str]:
        return [kept.said[-1] for kept in self.memories.values() if kept.found]

    async def _write(self, kind: str, call: Callable[[Caller, str], Awaitable[T]]) -> T:
        """Until it is acknowledged, each time with the same request id."""
        request_id = uuid4().hex
        done: T = await self.until_done(lambda desk: call(desk, request_id))
        self.acknowledged[kind] = self.acknowledged.get(kind, 0) + 1
        return done

    async def _read(self, call: Callable[[Caller], Awaitable[T]]) -> T:
        found: T = await self.until_done(call)
        return found

    async def _absent(self, method: str, request: Any) -> bool:
        async def read(desk: Caller) -> bool:
            try:
                await desk.call(method, request)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                return True
            return False

        return await self._read(read)

    def _same(self, what: str, found: Any, expected: Any) -> None:
        if found == expected:
            return
        if isinstance(found, list) and isinstance(expected, list):
            lost = [each for each in expected if each not in found]
            extra = [each for each in found if each not in expected]
            raise Violated(f"{what}: lost {lost[:3]}, too much {extra[:3]}, {len(found)} for {len(expected)}")
        raise Violated(f"{what}: {found} instead of {expected}")


def _word(text: str) -> str:
    return text.split()[0]


def _call(method: str, request: Any) -> Callable[[Caller, str], Awaitable[Any]]:
    def call(desk: Caller, request_id: str) -> Awaitable[Any]:
        request.request_id = request_id
        return desk.call(method, request)

    return call
