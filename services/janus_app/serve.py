"""`janus serve`: run a mesh until a signal says stop."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
from pathlib import Path

import typer
import uvloop
from rich.console import Console

from janus_app.embedded import default_data_folder
from janus_app.mesh import SERVICES, Mesh, running
from janus_kit import collector
from janus_kit.errors import Unavailable
from janus_kit.migrations import MigrationError
from janus_kit.reload import Reloading
from janus_kit.settings import TelemetrySettings
from janus_kit.telemetry import logging, tracing
from janus_kit.transport import ListenError
from janus_kit.version import version

REFUSALS = (ListenError, MigrationError, Unavailable)
"""What keeps a mesh from starting and can be told in a sentence."""


def services(only: str | None) -> tuple[str, ...]:
    """The services to run, in starting order; raises BadParameter for a name that is none."""
    if only is None:
        return SERVICES
    asked = [name.strip() for name in only.split(",") if name.strip()]
    if unknown := [name for name in asked if name not in SERVICES]:
        raise typer.BadParameter(f"--only {unknown[0]}: no such service; there are {', '.join(SERVICES)}")
    if not asked:
        raise typer.BadParameter(f"--only names no service; there are {', '.join(SERVICES)}")
    return tuple(name for name in SERVICES if name in asked)


def run(reloading: Reloading, data: Path, names: tuple[str, ...]) -> None:
    """Serve until SIGTERM or SIGINT, then drain and stop in order; a second signal stops at once.

    SIGHUP, also that of a terminal which goes away, reads the settings again and ends nothing.
    """
    settings = reloading.loaded
    telemetry = settings.section("telemetry", TelemetrySettings)
    # A person reads more easily what a machine would rather not; whoever says what he wants gets it.
    by_hand = sys.stderr.isatty() and settings.origin("telemetry.log_format") == "default"
    logging.configure(level=telemetry.log_level, form="console" if by_hand else telemetry.log_format)
    tracing.configure(endpoint=telemetry.otlp_endpoint, service="janus", version=version(), ratio=telemetry.trace_ratio)
    try:
        uvloop.run(_serve(reloading, data, names))
    finally:
        tracing.shutdown()


async def _serve(reloading: Reloading, data: Path, names: tuple[str, ...]) -> None:
    task = asyncio.ensure_future(_until_stopped(reloading, data, names, stop := asyncio.Event()))
    loop = asyncio.get_running_loop()

    def asked_to_stop() -> None:
        if stop.is_set():
            task.cancel()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop)
    loop.add_signal_handler(signal.SIGHUP, reloading.request)
    try:
        await task
    except asyncio.CancelledError:
        if not stop.is_set():
            raise


async def _until_stopped(reloading: Reloading, data: Path, names: tuple[str, ...], stop: asyncio.Event) -> None:
    async with running(reloading, data, names) as mesh, reloading.watching():
        _welcome(mesh)
        collector.settle()
        await stop.wait()


def _invoked() -> str:
    """How to call this command, as it can be typed here."""
    if shutil.which("janus"):
        return "janus"
    return f"{sys.executable} -m janus_app" if sys.argv[0].endswith("__main__.py") else sys.argv[0]


def _welcome(mesh: Mesh) -> None:
    console = Console()
    console.print(f"\n[bold]Janus is up[/]  data in {mesh.data}", highlight=False)
    console.print(
        f"  gRPC   {mesh.grpc}   {', '.join(name for name in mesh.services if name != 'edge')}",
        highlight=False,
    )
    if mesh.http:
        console.print(f"  HTTP   http://{mesh.http}   /v1/chat/completions, /readyz, /metrics", highlight=False)
    console.print("\nIn another terminal:", highlight=False)
    elsewhere = "" if mesh.data == default_data_folder() else f" --data {mesh.data}"
    commands = (
        (f"chat{elsewhere}", "talk to it"),
        (f"doctor{elsewhere}", "see how every part is"),
        ("config show", "every setting and where it comes from"),
    )
    width = max(len(command) for command, _ in commands)
    for command, purpose in commands:
        console.print(f"  [cyan]{_invoked()} {command:<{width}}[/] {purpose}", highlight=False, soft_wrap=True)
    console.print("\nCtrl-C stops it; what was acknowledged is kept.\n", highlight=False)
