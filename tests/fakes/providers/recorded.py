"""Serves one recorded body, byte for byte, in pieces of a chosen size."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator

from tests.fakes.providers.http_server import Reply, Request

Cutter = Callable[[bytes], Iterator[bytes]]


def whole(data: bytes) -> Iterator[bytes]:
    """All at once."""
    yield data


def every(size: int) -> Cutter:
    """Pieces of so many bytes."""

    def cut(data: bytes) -> Iterator[bytes]:
        for at in range(0, len(data), size):
            yield data[at : at + size]

    return cut


def at_random(seed: int, most: int = 200) -> Cutter:
    """Pieces of 1 to ``most`` bytes; the same for the same seed."""

    def cut(data: bytes) -> Iterator[bytes]:
        numbers, at = random.Random(seed), 0
        while at < len(data):
            size = numbers.randint(1, most)
            yield data[at : at + size]
            at += size

    return cut


def application(data: bytes, status: int, content_type: str, cutter: Cutter) -> Callable[[Request], Reply]:
    """Answers every request with the recording."""

    async def pieces() -> AsyncIterator[bytes]:
        for piece in cutter(data):
            yield piece
            await asyncio.sleep(0)  # lets the client read this piece alone

    return lambda request: Reply(pieces(), status=status, content_type=content_type)
