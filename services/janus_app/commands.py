"""The commands of `janus`. Each one's work is in the module of its name."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from janus_app.calls import failed, mesh_of
from janus_app.memory.commands import memory_app
from janus_app.runs.commands import agent_app, run_app

app = typer.Typer(
    name="janus",
    help="A self-hosted backend for AI assistants: inference, memory and durable runs behind one gRPC contract.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)
config_app = typer.Typer(help="Look at the settings.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(memory_app, name="memory")
app.add_typer(run_app, name="run")
app.add_typer(agent_app, name="agent")

Data = Annotated[
    Path | None, typer.Option("--data", help="Data folder. Default: $JANUS_DATA, else ~/.local/share/janus.")
]
Config = Annotated[Path | None, typer.Option("--config", help="YAML file with settings. Default: $JANUS_CONFIG.")]
Address = Annotated[
    str | None,
    typer.Option("--address", envvar="JANUS_ADDRESS", help="host:port of a mesh. Default: the one of the data folder."),
]


@app.command()
def serve(
    data: Data = None,
    config: Config = None,
    listen: Annotated[str | None, typer.Option(help="host:port for gRPC. Default: 127.0.0.1:50051.")] = None,
    http: Annotated[str | None, typer.Option(help="host:port for HTTP. Default: 127.0.0.1:8080.")] = None,
    only: Annotated[
        str | None,
        typer.Option(help="Services to run, with commas: inference,memory,orchestration,edge. Default: all."),
    ] = None,
) -> None:
    """Start the mesh and stay up; Postgres, Valkey and Chroma are started too unless URLs are set."""
    from janus_app import serve as command
    from janus_app.embedded import EmbeddedError
    from janus_app.settings import SettingsError, data_folder, sources
    from janus_kit.reload import Reloading

    overrides: dict[str, Any] = {}
    if listen is not None:
        overrides["server.listen"] = listen
    if http is not None:
        overrides["edge.listen"] = http
    services = command.services(only)
    try:
        command.run(Reloading(sources(config, overrides)), data_folder(data), services)
    except (SettingsError, EmbeddedError, *command.REFUSALS) as error:
        raise failed(str(error)) from None


@app.command()
def chat(
    data: Data = None,
    address: Address = None,
    subject: Annotated[str, typer.Option(help="Who you are; memories belong to it.")] = "me",
    model: Annotated[str, typer.Option(help="Model or alias. Default: the server's.")] = "",
    agent: Annotated[str, typer.Option(help="Talk to this agent of yours. Default: one of the chat's own.")] = "",
    thread: Annotated[str, typer.Option(help="Go on with this thread. Default: a new one.")] = "",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where you were: show the end of your newest thread, and its run.")
    ] = False,
) -> None:
    """Talk to a running mesh; tokens as they come, and what was recalled."""
    from janus_app.chat import Chat

    with mesh_of(data, address) as mesh:
        chatting = Chat(mesh, Console(), subject=subject, model=model, agent=agent)
        chatting.open(thread, resume=resume)
        chatting.loop()


@app.command()
def demo(
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder for the demo's mesh. Default: a temporary one.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Model or alias to answer. Default: the rehearsal without a language model.")
    ] = "",
) -> None:
    """Show the main job: converse, kill -9, restart, and see that it remembers."""
    from janus_app.demo import DemoFailed, play

    console = Console()
    try:
        if data is not None:
            play(console, data.expanduser().absolute(), model)
        else:
            with tempfile.TemporaryDirectory(prefix="janus-demo-") as folder:
                play(console, Path(folder), model)
    except DemoFailed as failure:
        raise failed(f"✗ {failure}") from None


@app.command()
def doctor(data: Data = None, config: Config = None, address: Address = None) -> None:
    """Check every dependency and say how to fix what is wrong."""
    from janus_app.doctor import examine
    from janus_app.settings import data_folder

    if not examine(Console(), data_folder(data), config, address):
        raise typer.Exit(1)


@config_app.command("show")
def config_show(config: Config = None) -> None:
    """Print the merged settings, secrets masked, and where each value comes from."""
    from janus_app.config import show
    from janus_app.settings import SettingsError, load_settings

    try:
        show(Console(), load_settings(config, {}))
    except SettingsError as error:
        raise failed(str(error)) from None


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    typer.echo(f"janus {installed('janus-mesh')} (Python {sys.version.split()[0]})")
