"""What is read of a body whose connection is lost, against a real server."""

import asyncio
import ssl
from contextlib import suppress

import aiohttp
import httpx2
import pytest
from tests.fakes.memory_service import eventually

from janus_inference.adapters.http_session import session

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
WORDS = [f"word{number} ".encode() * 200 for number in range(40)]


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"".join(b"%x\r\n%s\r\n" % (len(word), word) for word in WORDS))
        await writer.drain()
    writer.close()


@pytest.mark.parametrize("most", [1_000, 16_384, 1_000_000])
async def test_all_that_came_is_read_before_the_loss_is_raised(most: int) -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    limits = httpx2.Limits(max_connections=1)
    async with server, session(ssl.create_default_context(), limits) as http, asyncio.timeout(10):
        answer = await http.get(f"http://127.0.0.1:{address[1]}/")

        async def lost() -> bool:
            return answer.content.exception() is not None

        await eventually(lost)
        heard = b""
        with pytest.raises(aiohttp.ClientPayloadError):
            async for chunk in answer.content.iter_chunked(most):
                heard += chunk
        assert heard == b"".join(WORDS)
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.content.read()
