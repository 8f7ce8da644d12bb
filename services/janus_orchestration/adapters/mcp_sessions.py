"""Connections to MCP servers with the `mcp` package.

It takes long to import and is not needed without a server: see ``mcp_connector``.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import mcp_types as types
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost
from pydantic import TypeAdapter, ValidationError

from janus_kit.settings import MiB
from janus_kit.telemetry import tracing
from janus_kit.telemetry.logging import get_logger
from janus_kit.version import version
from janus_orchestration.adapters import mcp_http, mcp_stdio
from janus_orchestration.adapters.mcp_ended import Ended
from janus_orchestration.mcp_ports import McpLost, McpNotTaken, McpSession, Progress
from janus_orchestration.mcp_settings import McpServerSettings
from janus_orchestration.model import Tool, ToolOutput
from janus_orchestration.wire.mcp import LeftOut, Listing, listing_from, output_from, progress_from, refusal_from

_log = get_logger(__name__)

# A run's messages may be 3 MiB, which is 4 in base64.
_MOST_BYTES = 5 * MiB
_MOST_PAGES = 64
_RELISTEN_S = 1.0
_WELL_AFTER_S = 30.0
# More than an agent can ask for.
_FOR_EVER_S = 2 * 86_400.0
# The package's words for an answer over HTTP that is too large. It would be so again.
_UNREADABLE = "SSE stream failed"
IDEMPOTENCY_KEY = "janus/idempotency-key"
"""In the `_meta` of a call: the same for every try at it."""

_RESULT: TypeAdapter[types.CallToolResult | types.InputRequiredResult] = TypeAdapter(
    types.CallToolResult | types.InputRequiredResult
)

# What the package logs has the words of servers in it; what matters of it is raised as well.
for _name in ("mcp", "client"):
    logging.getLogger(_name).propagate = False
    logging.getLogger(_name).addHandler(logging.NullHandler())


@asynccontextmanager
async def connection(name: str, settings: McpServerSettings) -> AsyncIterator[McpSession]:
    """Connect to a server. Raises McpLost with why it is not, or no longer, where that is known."""
    session = _Session(name, settings)
    try:
        async with _connected(name, settings, session):
            yield session
    except Exception as error:
        if why := session.ended.why or _refused(error):
            raise McpLost(why) from error
        raise


def _refused(error: BaseException) -> str:
    """Why a server is not one that we can use, without its own words."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, MCPError) or error.code == types.CONNECTION_CLOSED:
        return ""
    if error.code == types.REQUEST_TIMEOUT:
        return "it does not answer in time"
    return f"it answered with the error {error.code} of the protocol"


@asynccontextmanager
async def _connected(name: str, settings: McpServerSettings, session: "_Session") -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            Client(
                await _transport(stack, name, settings, session.ended),
                client_info=types.Implementation(name="janus", version=version()),
                message_handler=session.heard,
                read_timeout_seconds=settings.connect_timeout_s,
                # Lists are kept by who asks for them.
                cache=None,
            )
        )
        session.opened(client)
        try:
            yield
        finally:
            await session.close()


async def _transport(
    stack: AsyncExitStack, name: str, settings: McpServerSettings, ended: Ended
) -> AbstractAsyncContextManager[Any]:
    if settings.command:
        return mcp_stdio.program(
            settings.command,
            name=name,
            env={key: secret.get_secret_value() for key, secret in settings.env.items()},
            cwd=settings.cwd,
            stderr=settings.stderr,
            most_bytes=_MOST_BYTES,
            ended=ended,
        )
    headers = {key: secret.get_secret_value().strip() for key, secret in settings.headers.items()}
    http = mcp_http.client(headers, connect_s=settings.connect_timeout_s, most_bytes=_MOST_BYTES, ended=ended)
    await stack.enter_async_context(http)
    return streamable_http_client(settings.url, http_client=http, max_sse_event_size=_MOST_BYTES)


class _Session:
    """An ``McpSession``."""

    def __init__(self, name: str, settings: McpServerSettings) -> None:
        self.ended = Ended()
        self._name = name
        self._settings = settings
        self._client: Client
        self._listing = Listing((), {}, ())
        self._changed = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None
        self._told: frozenset[LeftOut] = frozenset()

    def opened(self, client: Client) -> None:
        self._client = client
        tools = client.server_capabilities.tools
        if tools is not None and tools.list_changed:
            self._listening = asyncio.create_task(self._listen(), name=f"mcp-listen-{self._name}")

    async def close(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)

    async def heard(self, message: Any) -> None:
        """What the server says of itself; a newer one says it only to who listens."""
        if isinstance(message, types.ToolListChangedNotification):
            self._changed.set()

    async def _listen(self) -> None:
        loop, wait_s = asyncio.get_running_loop(), _RELISTEN_S
        while True:
            began = loop.time()
            try:
                async with self._client.listen(tools_list_changed=True) as events:
                    async for _ in events:
                        self._changed.set()
            except ListenNotSupportedError:
                return
            except (SubscriptionLost, MCPError, TimeoutError):
                pass
            # A server that will not be listened to is asked ever more seldom.
            wait_s = _RELISTEN_S if loop.time() - began > _WELL_AFTER_S else wait_s * 2
            await asyncio.sleep(min(wait_s, self._settings.refresh_s))
            # Something may have been missed; and to ask is to see whether the server still answers.
            self._changed.set()

    async def changed(self) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in (self.ended, self._changed)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self.ended.is_set():
            raise McpLost
        self._changed.clear()

    async def tools(self) -> Sequence[Tool]:
        listed: list[types.Tool] = []
        cursor: str | None = None
        try:
            for _ in range(_MOST_PAGES):
                page = await self._client.list_tools(cursor=cursor)
                listed += page.tools
                cursor = page.next_cursor
                if cursor is None:
                    break
        except MCPError as error:
            raise self._failure(error) from error
        self._listing = listing_from(self._name, self._settings, listed)
        left_out = frozenset(self._listing.left_out)
        for each in sorted(left_out - self._told):
            _log.warning("mcp_tool_left_out", server=self._name, tool=each.tool, why=each.why)
        self._told = left_out
        return self._listing.tools

    async def call(self, tool: str, arguments: Mapping[str, Any], idempotency_key: str, tell: Progress) -> ToolOutput:
        async def told(progress: float, total: float | None, message: str | None) -> None:
            tell(*progress_from(progress, total, message))

        if self.ended.is_set():
            raise McpNotTaken
        meta: Any = {IDEMPOTENCY_KEY: idempotency_key, **dict(tracing.outgoing(tracing.current()))}
        params = types.CallToolRequestParams(name=tool, arguments=dict(arguments), _meta=meta)
        try:
            # Not call_tool: that checks results with a library whose patterns may take for ever.
            result = await self._client.session.send_request(
                types.CallToolRequest(params=params),
                _RESULT,
                # Who calls says for how long.
                request_read_timeout_seconds=_FOR_EVER_S,
                progress_callback=told,
            )
        except MCPError as error:
            failure = self._failure(error)
            if isinstance(failure, MCPError):
                return refusal_from(error.message)
            raise failure from error
        except ValidationError:
            return ToolOutput("the tool ran, but what its server answered is no result", is_error=True)
        if isinstance(result, types.InputRequiredResult):
            return ToolOutput("the tool asks for input while it runs, which is not supported", is_error=True)
        return output_from(result, self._listing.output_schemas.get(tool))

    def _failure(self, error: MCPError) -> Exception:
        """What an error of the protocol means; itself where the server has refused."""
        if error.code == mcp_http.NOT_TAKEN:
            return McpNotTaken()
        if error.code == types.CONNECTION_CLOSED and not error.message.startswith(_UNREADABLE):
            return McpLost()
        if error.code == types.REQUEST_TIMEOUT:
            return TimeoutError()
        return error
