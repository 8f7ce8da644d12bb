"""A gRPC call that lives as long as its HTTP client."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from starlette.types import Receive

from janus_kit.errors import Cancelled, JanusError, Unavailable
from janus_kit.rpc_errors import from_rpc


class Client:
    """The HTTP client of a call."""

    gone = False


@asynccontextmanager
async def tied(call: Any, receive: Receive) -> AsyncIterator[Client]:
    """Cancel the call as soon as the client is gone, and in any case on leaving the block.

    The request's body must have been read: what ``receive`` has left to say is
    that the client disconnected. A cancelled call raises CancelledError where
    it is awaited; ``client.gone`` tells that from a cancelled request.
    """
    client = Client()

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        client.gone = True
        call.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield client
    finally:
        call.cancel()
        watcher.cancel()
        await asyncio.wait([watcher])


def upstream_error(error: grpc.aio.AioRpcError) -> JanusError:
    """What the inference service answered, as the error to show."""
    found = from_rpc(error, part="inference")
    # The caller is still here: it was not the caller who ended the call.
    return Unavailable("inference", "the server ended the call") if isinstance(found, Cancelled) else found
