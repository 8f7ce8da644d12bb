"""RPCs of the contract that this version does not have: each says so, typed.

A refusal is made for every method that a servicer leaves out, found from the
service's descriptor, so that none can be forgotten.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, TypeVar

from janus_kit.errors import Unimplemented

T = TypeVar("T", bound=type)

_FIRST_MESSAGE_S = 5.0


def refuse_the_rest(servicer: T, service: Any) -> T:
    """Give every method of ``service`` (its descriptor) that the class lacks a refusal."""
    for method in service.methods:
        if method.name not in vars(servicer):
            name = f"{service.full_name}/{method.name}"
            make = _stream if method.server_streaming else _unary
            setattr(servicer, method.name, make(name, method.client_streaming))
    return servicer


async def _hear(requests: AsyncIterator[Any]) -> None:
    """Wait for the client's first message, or for the end of what it sends.

    A call that ends while its client still writes may reach it as INTERNAL.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(_FIRST_MESSAGE_S):
            async for _ in requests:
                return


def _refusal(method: str) -> Unimplemented:
    return Unimplemented(message=f"{method} is not in this version of the server", metadata={"method": method})


def _unary(method: str, client_streams: bool) -> Any:
    async def refuse(self: Any, request: Any, context: Any) -> Any:
        if client_streams:
            await _hear(request)
        raise _refusal(method)

    return refuse


def _stream(method: str, client_streams: bool) -> Any:
    async def refuse(self: Any, request: Any, context: Any) -> AsyncIterator[Any]:
        if client_streams:
            await _hear(request)
        nothing: tuple[Any, ...] = ()
        for each in nothing:
            yield each  # an async generator, as gRPC wants it
        raise _refusal(method)

    return refuse
