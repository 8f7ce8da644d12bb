"""A server in a process of its own that prints its port, and ends with its stdin or on SIGTERM."""

import asyncio
import signal
import sys

import grpc


async def announced(server: grpc.aio.Server) -> None:
    """Serve on a free port of the loopback until the process is to end."""
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)  # noqa: T201 - whoever started it reads this
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_reader(sys.stdin.fileno(), stop.set)
    await stop.wait()
    await server.stop(None)
