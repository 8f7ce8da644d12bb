"""What all HTTP providers share: an answer's bytes on their way to the dialect's reader, and errors in our terms."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from janus_inference import telemetry
from janus_inference.adapters.sdk_client import SdkClient, lost_connection, stopwatch_of_call
from janus_inference.dialects import error_body
from janus_inference.dialects.json_text import NotJson, parse_object
from janus_inference.dialects.reader import Reader
from janus_inference.events import ProviderEvent
from janus_inference.ports import Ask, Stopwatch
from janus_inference.provider_errors import (
    ProviderFailure,
    Refused,
    broken,
    classify,
    retry_after_of,
    timed_out,
    unreachable,
)

MAX_BODY_BYTES = 4 * 1024 * 1024
_DRAIN_S = 0.1


@asynccontextmanager
async def answering(
    client: SdkClient[Any], path: str, body: Mapping[str, object], ask: Ask, *, provider: str, reader: Reader
) -> AsyncIterator[AsyncIterator[Sequence[ProviderEvent]]]:
    """Ask, and read the answer; leaving the block closes the connection.

    After a whole answer the rest of the body, an end-of-chunks mark as a rule,
    is read, so that the connection can be used again.
    """
    ask.stopwatch.counts(reader.used)
    response = await _posted(client, path, body, provider, ask.model, ask.stopwatch, ask.connect_timeout)
    try:
        ask.stopwatch.heard()
        chunks = _bytes(response)
        async with aclosing(chunks):
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            async with aclosing(_batches(chunks, kind, reader, ask.stopwatch, provider)) as batches:
                yield batches
            if reader.whole:
                await _drain(chunks)
    finally:
        if reader.unknown:
            telemetry.unknown_events_total.labels(reader.dialect).inc(reader.unknown)
        await response.aclose()


def _bytes(response: Any) -> Any:
    """The body as it comes. The response's own iterators cost as much a token as parsing it."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        return response.aiter_bytes()
    return aiter(response.stream)


async def _batches(
    chunks: AsyncIterator[bytes], kind: str, reader: Reader, stopwatch: Stopwatch, provider: str
) -> AsyncGenerator[Sequence[ProviderEvent], None]:
    if kind == "text/html":
        raise broken(provider, "a web page came instead of an answer")
    body = bytearray() if kind == "application/json" else None
    try:
        async for chunk in chunks:
            stopwatch.heard()
            if body is not None:
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise broken(provider, "the answer is larger than 4 MiB")
                continue
            if events := reader.feed(chunk):
                yield events
            if reader.failure is not None:
                raise reader.failure
            if reader.whole:
                return
    except lost_connection() as error:
        raise connection_lost(provider, error) from None
    if events := reader.close() if body is None else reader.body(bytes(body)):
        yield events
    if reader.failure is not None:
        raise reader.failure


async def whole_answer(
    client: SdkClient[Any],
    path: str,
    body: Mapping[str, object],
    *,
    provider: str,
    model: str,
    stopwatch: Stopwatch,
    connect_timeout: float,
    most_bytes: int = MAX_BODY_BYTES,
) -> dict[str, Any]:
    """Ask what is answered with one JSON object of at most so many bytes. Raises ProviderFailure."""
    response = await _posted(client, path, body, provider, model, stopwatch, connect_timeout)
    data = bytearray()
    try:
        async for chunk in response.aiter_bytes():
            data += chunk
            if len(data) > most_bytes:
                raise broken(provider, f"the answer is larger than {most_bytes // (1024 * 1024)} MiB")
        return parse_object(bytes(data))
    except lost_connection() as error:
        raise connection_lost(provider, error) from None
    except NotJson:
        raise broken(provider, "the answer is not of the expected form") from None
    finally:
        await response.aclose()


def count_in(answer: Mapping[str, Any], provider: str) -> int:
    """The number of tokens that a provider counted. Raises ProviderFailure."""
    tokens = answer.get("input_tokens")
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
        raise broken(provider, "the answer has no number of tokens")
    return tokens


def connection_lost(provider: str, error: BaseException) -> ProviderFailure:
    """A connection that breaks is a broken answer."""
    failure = broken(provider, "the connection was lost")
    failure.detail = type(error).__name__
    return failure


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    """Read to the end, briefly: a body that goes on for longer costs the connection, not the caller."""
    try:
        async with asyncio.timeout(_DRAIN_S):
            async for _ in chunks:
                pass
    except Exception:  # noqa: BLE001 - the answer is whole; what comes after it is of no interest
        return


async def _posted(
    client: SdkClient[Any],
    path: str,
    body: Mapping[str, object],
    provider: str,
    model: str,
    stopwatch: Stopwatch,
    connect_timeout: float,
) -> Any:
    """The response, which is to be closed, or the SDK's error in the caller's terms."""
    token = stopwatch_of_call.set(stopwatch)
    try:
        return await client.post(path, body, connect_timeout)
    except client.sdk.APIStatusError as error:
        raise classify(provider, model, refused(error)) from None
    except client.sdk.APIConnectionError as error:
        if _caused_by(error, TimeoutError):
            raise timed_out(provider, "connect", connect_timeout) from None
        if _was_connected(error):
            # It had the request, or some of it, and may have worked on it.
            raise connection_lost(provider, error) from None
        raise unreachable(provider, _innermost(error)) from None
    except client.sdk.APIError as error:
        raise _senseless(provider, error) from None
    except lost_connection() as error:
        # What is no HTTP at all reaches us as it is.
        raise connection_lost(provider, error) from None
    finally:
        stopwatch_of_call.reset(token)


def refused(error: Any) -> Refused:
    """What an SDK's status error says."""
    # OpenAI's SDK gives the inner object, Anthropic's the whole body.
    said = error.body
    if isinstance(said, dict) and isinstance(said.get("error"), dict | str):
        said = said["error"]
    headers = {key.lower(): value for key, value in error.response.headers.items()}
    should_retry = {"true": True, "false": False}.get(headers.get("x-should-retry", ""))
    return error_body.refused(error.status_code, said, retry_after=retry_after_of(headers), should_retry=should_retry)


def _senseless(provider: str, error: BaseException) -> ProviderFailure:
    """The SDK could make nothing of the answer."""
    failure = broken(provider, "the answer is not of the expected form")
    failure.detail = type(error).__name__
    return failure


def _innermost(error: BaseException) -> str:
    """Class name of the root cause, for the log; its text may hold addresses or keys."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return type(error).__name__


def _was_connected(error: BaseException) -> bool:
    """Whether a connection was there to be lost."""
    import aiohttp

    lost = (
        aiohttp.ServerDisconnectedError,
        aiohttp.ClientPayloadError,
        aiohttp.ClientResponseError,
        ConnectionResetError,
        BrokenPipeError,
    )
    return not _caused_by(error, aiohttp.ClientConnectorError) and any(_caused_by(error, each) for each in lost)


def _caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__ or error.__context__
    return False
