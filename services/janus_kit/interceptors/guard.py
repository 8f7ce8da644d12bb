"""Decode guard and error mapping: whatever goes wrong, the caller gets a typed status.

gRPC would answer bytes that do not decode, and any exception, with UNKNOWN and
a Python class name. So handlers get raw bytes, decoding happens inside the
guard, and every exception becomes a JanusError here. What is nobody's fault
but ours becomes INTERNAL with an incident id; the log has the same id and the
stack.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

import grpc

from janus_kit.errors import Cancelled, Internal, InvalidArgument, JanusError
from janus_kit.ids import new_id
from janus_kit.interceptors.call import Call, Method
from janus_kit.rpc_errors import from_rpc, to_trailers
from janus_kit.telemetry.logging import get_logger

_log = get_logger(__name__)

Decode = Callable[[bytes], Any]
_Result = TypeVar("_Result")

# How long a caller who does not read may keep its status from being sent.
_FIRST_WRITE_S = 1.0


async def answered(call: Call, work: Awaitable[_Result]) -> _Result:
    """End the call with the status of whatever comes out of the work, and note it on the call.

    Only the attempt to send a status tells whether the caller is still there:
    a task may have been cancelled by gRPC because the caller left, or by code
    of ours, and then gRPC would let the caller wait for ever.
    """
    try:
        return await work
    except grpc.aio.AbortError:
        # The servicer ended the call in gRPC's own words.
        call.status = _code_of(call.context)
        raise
    except asyncio.CancelledError as cancelled:
        raise await _ended(call, Cancelled()) or cancelled from None
    except Exception as error:
        refusal = _named(error)
        sent = await _ended(call, refusal)
        if sent is None:
            # What cancelled work makes of it on its way out.
            _log.info("failed_after_cancel", exc_info=error)
            raise asyncio.CancelledError from error
        if isinstance(refusal, Internal) and refusal is not error:
            _log.error("internal_error", incident_id=refusal.incident_id, exc_info=error)
        raise sent from error


def decoder(method: Method, decode: Decode | None, max_bytes: int) -> Decode:
    """A decoder that refuses instead of raising what protobuf raises."""

    def guarded(raw: bytes) -> Any:
        if len(raw) > max_bytes:
            raise InvalidArgument(
                "request",
                f"must be at most {max_bytes} bytes encoded",
                metadata={"limit_bytes": str(max_bytes), "actual_bytes": str(len(raw))},
            )
        if decode is None:
            return raw
        try:
            return decode(raw)
        except Exception:  # noqa: BLE001 - protobuf raises several kinds for garbage
            raise InvalidArgument(
                "request",
                f"the bytes are not a valid {method.request_type}",
                reason="REQUEST_UNDECODABLE",
            ) from None

    return guarded


class Requests:
    """A client's stream of messages, decoded one by one as the servicer asks."""

    __slots__ = ("_decode", "_source")

    def __init__(self, source: AsyncIterator[bytes], decode: Decode) -> None:
        self._source = source
        self._decode = decode

    def __aiter__(self) -> "Requests":
        return self

    async def __anext__(self) -> Any:
        return self._decode(await self._source.__anext__())


class ReadingContext:
    """The servicer's context of a call with a stream of requests: ``read`` decodes too."""

    def __init__(self, context: Any, decode: Decode) -> None:
        self._context = context
        self._decode = decode

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def read(self) -> Any:
        raw = await self._context.read()
        return raw if raw is grpc.aio.EOF else self._decode(raw)


def _named(error: Exception) -> JanusError:
    """The failure as a caller may read it."""
    if isinstance(error, JanusError):
        return error
    if isinstance(error, ExceptionGroup):
        # A task group's failures; a refusal among them is what the caller should read.
        refusal = next((leaf for leaf in _leaves(error) if isinstance(leaf, JanusError)), None)
        if refusal is not None:
            return refusal
    if isinstance(error, grpc.aio.AioRpcError):
        return from_rpc(error)
    return Internal(new_id("inc"))


def _leaves(group: ExceptionGroup[Exception]) -> Iterator[Exception]:
    for error in group.exceptions:
        if isinstance(error, ExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


async def _ended(call: Call, refusal: JanusError) -> BaseException | None:
    """Send the status. What gRPC wants raised after that; None when the caller is gone."""
    code, message, trailers = to_trailers(refusal)
    call.status, call.reason = code, refusal.reason
    if call.first_write is not None and not call.first_write.done():
        await asyncio.wait([call.first_write], timeout=_FIRST_WRITE_S)
        call.first_write.cancel()
    try:
        await call.context.abort(code, message, (*trailers, ("x-request-id", call.request_id)))
    except grpc.aio.AbortError as sent:
        return sent
    except Exception:  # noqa: BLE001 - gRPC raises several kinds, internal ones among them
        call.status, call.reason = grpc.StatusCode.CANCELLED, "CANCELLED"
    return None


def _code_of(context: Any) -> grpc.StatusCode:
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code
    return next((known for known in grpc.StatusCode if known.value[0] == code), grpc.StatusCode.UNKNOWN)
