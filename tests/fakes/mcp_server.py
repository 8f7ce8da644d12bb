"""A real MCP server, written with the `mcp` package, that misbehaves on request.

    python mcp_server.py stdio
    python mcp_server.py http PORT

What it sees goes to the file JOURNAL, a JSON object a line. With LEGACY it
speaks the protocol of 2025 alone. With DEAF it does not end with its stdin, and
with DEAF=very not by SIGTERM either.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import threading
from typing import Any, TypedDict

import mcp_types as types
from mcp.server.lowlevel.server import NotificationOptions
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.runner import serve_loop
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError
from pydantic import BaseModel

# Before the transport takes stdout for itself.
_WIRE = os.dup(1)
_JOURNAL = os.environ.get("JOURNAL", os.devnull)
_LEGACY = bool(os.environ.get("LEGACY"))
READ_ONLY = types.ToolAnnotations(read_only_hint=True)
IDEMPOTENT = types.ToolAnnotations(read_only_hint=False, idempotent_hint=True)

server: MCPServer[Any] = MCPServer("shop")


def saw(what: str, **more: Any) -> None:
    with open(_JOURNAL, "a") as journal:
        journal.write(json.dumps({"what": what, "pid": os.getpid(), **more}) + "\n")


def times(what: str) -> int:
    """How often it saw that, in this life and those before."""
    with open(_JOURNAL) as journal:
        return sum(json.loads(line)["what"] == what for line in journal)


async def _lies(ctx: Any, call_next: Any) -> Any:
    """What tools written with the package cannot say."""
    if ctx.method == "tools/call" and ctx.params["name"] == "price":
        match ctx.params["arguments"]["item"]:
            case "lie":
                text = types.TextContent(type="text", text="cheap")
                return types.CallToolResult(content=[text], structured_content={"item": "lie", "cents": "few"})
            case "omit":
                return types.CallToolResult(content=[])
            case "error":
                raise MCPError(code=types.INTERNAL_ERROR, message="the shelf fell down")
            case "bad media":
                image = types.ImageContent(type="image", data="?", mime_type="image/png")
                return types.CallToolResult(content=[image], structured_content={"item": "lie", "cents": 1})
    return await call_next(ctx)


server.middleware.append(_lies)


class Answer(BaseModel):
    yes: bool


class Price(TypedDict):
    item: str
    cents: int


@server.tool(annotations=READ_ONLY)
async def price(item: str, ctx: Context) -> Price:
    """What an item costs."""
    meta = dict(ctx.request_context.meta or {})
    saw("price", item=item, key=meta.get("janus/idempotency-key"), trace=meta.get("traceparent"))
    return {"item": item, "cents": 250}


@server.tool(annotations=IDEMPOTENT)
async def reserve(item: str) -> str:
    """Puts one aside."""
    saw("reserve")
    return f"one {item} is put aside"


@server.tool()
async def brew(item: str) -> str:
    """Brews a cup."""
    saw("brew")
    return f"a cup of {item}"


@server.tool(annotations=READ_ONLY)
async def whoami(ctx: Context) -> str:
    """Says who asks."""
    seen = {name: value for name, value in os.environ.items() if "JANUS" in name or name == "TOKEN"}
    return json.dumps({"headers": dict(ctx.headers or {}), "environment": seen, "pid": os.getpid()})


@server.tool(annotations=READ_ONLY)
async def slow(seconds: float) -> str:
    """Takes its time."""
    saw("slow began")
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        saw("slow cancelled")
        raise
    saw("slow ended")
    return "at last"


@server.tool()
async def slow_once(seconds: float) -> str:
    """Takes its time, and must not be repeated."""
    return str(await slow(seconds))


@server.tool(annotations=READ_ONLY)
async def steps(ctx: Context) -> str:
    """Says how far it is, until it is told to go on."""
    await ctx.report_progress(1, 4, "begun")
    while not times("go on"):  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    return "all steps"


@server.tool()
async def refuse() -> str:
    """Fails."""
    raise ValueError("out of stock")


@server.tool(annotations=READ_ONLY)
async def show() -> list[types.ContentBlock]:
    """Everything that a result may have in it."""
    png = base64.b64encode(b"\x89PNG").decode()
    pdf = types.BlobResourceContents(uri="file:///a.pdf", mime_type="application/pdf", blob=png)
    return [
        types.TextContent(type="text", text="a\x00b"),
        types.ImageContent(type="image", data=png, mime_type="image/png"),
        types.AudioContent(type="audio", data=png, mime_type="audio/wav"),
        types.EmbeddedResource(type="resource", resource=pdf),
        types.EmbeddedResource(
            type="resource", resource=types.TextResourceContents(uri="file:///b.txt", text="in the file")
        ),
        types.ResourceLink(type="resource_link", name="c", uri="https://example.com/c", description="more"),
    ]


@server.tool(annotations=READ_ONLY)
async def large(mebibytes: int) -> str:
    """Says a lot."""
    return "x" * (mebibytes * 1024 * 1024)


@server.tool(annotations=READ_ONLY)
async def die(lives: int) -> str:
    """Takes the process with it, so often."""
    saw("die")
    if times("die") <= lives:
        os._exit(1)
    return f"survived as {os.getpid()}"


@server.tool()
async def die_once() -> str:
    """Takes the process with it, and must not be repeated."""
    saw("die_once")
    os._exit(1)


@server.tool(annotations=READ_ONLY)
async def garble() -> str:
    """Writes what is no message to where messages go."""
    os.write(_WIRE, b'hello, operator\n\xff\xfe\n{"jsonrpc": "1.0"}\n[]\n\n{"id": 7}\n')
    return "garbled"


@server.tool()
async def learn(ctx: Context) -> str:
    """Comes to offer one more tool."""

    async def taught() -> str:
        """New."""
        return "taught"

    server.add_tool(taught)
    if _LEGACY:
        await ctx.request_context.session.send_notification(types.ToolListChangedNotification())
    else:
        await ctx.notify_tools_changed()
    return "learnt"


@server.tool()
async def ask(ctx: Context) -> str:
    """Asks its client something, which no client of a backend can answer."""

    return str(await ctx.elicit("really?", Answer))


@server.tool()
async def freeze() -> str:
    """Stops the whole process from doing anything more, while a child holds its pipes."""
    child = subprocess.Popen(["sleep", "300"])  # noqa: ASYNC220
    saw("frozen", child=child.pid)
    threading.Event().wait()
    return ""


@server.tool(name="a name/that is none")
async def unnameable() -> str:
    """Nobody can ask for it."""
    return ""


async def _legacy_stdio() -> None:
    inner = server._lowlevel_server
    options = inner.create_initialization_options(NotificationOptions(tools_changed=True))
    async with stdio_server() as (read, write), inner.lifespan(inner) as state:
        await serve_loop(inner, read, write, lifespan_state=state, init_options=options)


def _http() -> Any:
    """The server over HTTP; of old it knows no newer protocol."""
    app = server.streamable_http_app()

    async def legacy(scope: Any, receive: Any, send: Any) -> None:
        if (b"mcp-protocol-version", b"2026-07-28") in scope.get("headers", []):
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": b"bad version"})
        else:
            await app(scope, receive, send)

    return legacy if _LEGACY else app


def main() -> None:
    match os.environ.get("DEAF"):
        case "very":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        case "a little":
            signal.signal(signal.SIGTERM, lambda number, frame: (saw("terminated"), os._exit(0)))
    saw("started")
    if sys.argv[1] == "http":
        import uvicorn

        uvicorn.run(_http(), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
    elif _LEGACY:
        asyncio.run(_legacy_stdio())
    else:
        server.run("stdio")
    saw("ended")
    if os.environ.get("DEAF"):
        threading.Event().wait()


if __name__ == "__main__":
    main()
