"""Reading a JSON body: of the right type, bounded in size and time."""

import asyncio

from starlette.requests import Request

from janus_edge.openai_compat.errors import HttpError
from janus_edge.settings import EdgeSettings


async def read_json_body(request: Request) -> bytes:
    """The body's bytes. Raises HttpError (408, 413, 415); ClientDisconnect when the client left.

    The type must be said: a page of another origin can send text/plain to a
    loopback address without asking, application/json it cannot.
    """
    settings: EdgeSettings = request.app.state.settings
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HttpError(415, "the body must be application/json", code="unsupported_media_type")
    limit = settings.max_body_bytes
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise _too_large(limit)
    chunks, size = [], 0
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                chunks.append(chunk)
    except TimeoutError:
        raise HttpError(
            408,
            f"the body did not arrive within {settings.body_timeout_s:g} s",
            code="request_timeout",
            headers={"connection": "close"},
        ) from None
    return b"".join(chunks)


def _too_large(limit: int) -> HttpError:
    # The rest of the body is not read, so the connection cannot be used again.
    return HttpError(
        413,
        f"the body is larger than {limit} bytes",
        code="request_too_large",
        headers={"connection": "close"},
    )
