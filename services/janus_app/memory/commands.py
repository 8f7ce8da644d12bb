"""The commands of `janus memory`. Each one's work is in a module of this package."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from janus_app.calls import failed, mesh_of
from janus_app.memory.calls import Calls
from janus_app.refusals import Refused

memory_app = typer.Typer(help="Search, move, erase and check what is remembered.", no_args_is_help=True)

Data = Annotated[
    Path | None, typer.Option("--data", help="Data folder. Default: $JANUS_DATA, else ~/.local/share/janus.")
]
Address = Annotated[
    str | None,
    typer.Option("--address", envvar="JANUS_ADDRESS", help="host:port of a mesh. Default: the one of the data folder."),
]
Tenant = Annotated[str, typer.Option("--tenant", help="Whose memory. Default: the development tenant.")]
Space = Annotated[str, typer.Option("--space", help="The space. Default: `default`.")]
Subject = Annotated[str, typer.Option("--subject", help="Only what is about or from this subject.")]
Config = Annotated[Path | None, typer.Option("--config", help="YAML file with settings. Default: $JANUS_CONFIG.")]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON, for programs.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds that a call may take.")]


@contextmanager
def _calls(data: Path | None, address: str | None, tenant: str, timeout: float) -> Iterator[Calls]:
    """Calls to the mesh; whatever goes wrong is said in plain words, with exit code 1."""
    with mesh_of(data, address) as mesh:
        yield Calls(mesh, tenant, timeout)


@contextmanager
def _stores(data: Path | None, tenant: str, space: str) -> Iterator[Path]:
    """Work at the stores of a data folder themselves, beside the mesh."""
    from janus_app.settings import SettingsError, data_folder
    from janus_kit.errors import JanusError

    if space and not tenant:
        raise typer.BadParameter("--space needs --tenant")
    try:
        yield data_folder(data)
    except (SettingsError, JanusError, Refused) as error:
        raise failed(str(error)) from None


@memory_app.command()
def search(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    data: Data = None,
    address: Address = None,
    tenant: Tenant = "",
    space: Space = "",
    subject: Subject = "",
    agent: Annotated[str, typer.Option(help="Only what belongs to this agent.")] = "",
    thread: Annotated[str, typer.Option(help="Only this conversation.")] = "",
    kind: Annotated[
        list[str] | None,
        typer.Option(help="turn, fact, preference, event, summary or document_chunk; may be repeated. Default: all."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Most hits.")] = 10,
    where: Annotated[str | None, typer.Option("--filter", help="A Filter of the contract as JSON.")] = None,
    explain: Annotated[bool, typer.Option(help="Show how each score came about.")] = False,
    as_json: Json = False,
    timeout: Timeout = 30.0,
) -> None:
    """The best turns and memories for a query."""
    from janus_app.memory.records import recall_request, show_hits

    request = recall_request(query, space, subject, agent, thread, kind or [], limit, where, explain)
    with _calls(data, address, tenant, timeout) as calls:
        show_hits(Console(), calls.unary("Recall", request), explain=explain, as_json=as_json)


@memory_app.command()
def show(
    memory_id: Annotated[str, typer.Argument(help="Id of a memory.")],
    data: Data = None,
    address: Address = None,
    tenant: Tenant = "",
    as_json: Json = False,
    timeout: Timeout = 30.0,
) -> None:
    """One memory with all that is known of it."""
    from janus_api.memory.v1 import memory_service_pb2 as pb
    from janus_app.memory.records import show_memory

    with _calls(data, address, tenant, timeout) as calls:
        answer = calls.unary("GetMemory", pb.GetMemoryRequest(memory_id=memory_id))
        show_memory(Console(), answer.memory, as_json=as_json)


@memory_app.command()
def history(
    memory_id: Annotated[str, typer.Argument(help="Id of a memory.")],
    data: Data = None,
    address: Address = None,
    tenant: Tenant = "",
    as_json: Json = False,
    timeout: Timeout = 30.0,
) -> None:
    """Every version of a memory, oldest first."""
    from janus_app.memory.records import show_history

    with _calls(data, address, tenant, timeout) as calls:
        show_history(Console(), calls.history(memory_id), as_json=as_json)


@memory_app.command("export")
def export_(
    file: Annotated[Path, typer.Argument(help="Where to write; `-` is standard output.")],
    data: Data = None,
    address: Address = None,
    tenant: Tenant = "",
    space: Space = "",
    subject: Subject = "",
    with_history: Annotated[bool, typer.Option("--history", help="Superseded versions as well.")] = False,
    with_vectors: Annotated[bool, typer.Option("--vectors", help="Vectors as well.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    timeout: Timeout = 3600.0,
) -> None:
    """Everything of a space, or of a subject in it, into a file."""
    from janus_app.memory.transfer import export

    with _calls(data, address, tenant, timeout) as calls:
        export(Console(stderr=True), calls, file, space, subject, with_history, with_vectors, force)


@memory_app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="What `janus memory export` wrote.")],
    data: Data = None,
    address: Address = None,
    tenant: Tenant = "",
    space: Annotated[str, typer.Option("--space", help="Space to import into. Default: the exported one.")] = "",
    request_id: Annotated[str, typer.Option(help="Makes a repeated import of the same file one.")] = "",
    timeout: Timeout = 3600.0,
) -> None:
    """Put what was exported back, here or elsewhere; all of it or nothing."""
    from janus_app.memory.transfer import import_file

    with _calls(data, address, tenant, timeout) as calls:
        import_file(Console(stderr=True), calls, file, space, request_id)


@memory_app.command()
def erase(
    subject: Annotated[str, typer.Argument(help="Whose records to erase.")],
    data: Data = None,
    address: Address = None,
    tenant: Tenant = "",
    space: Annotated[str, typer.Option("--space", help="Only in this space. Default: in every one.")] = "",
    reason: Annotated[str, typer.Option(help="For the receipt.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    receipt: Annotated[Path | None, typer.Option(help="Write the receipt to this file, as JSON.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the receipt's file if it is there.")] = False,
    as_json: Json = False,
    timeout: Timeout = 600.0,
) -> None:
    """Remove a subject from every store, read back that it is gone, and show the signed receipt."""
    from janus_app.memory.upkeep import erase as work

    if not yes:
        typer.confirm(f"Erase everything of '{subject}' in {space or 'every space'}? This cannot be undone", abort=True)
    with _calls(data, address, tenant, timeout) as calls:
        work(Console(), calls, subject, space, reason, receipt, force, as_json=as_json)


@memory_app.command()
def verify(
    data: Data = None,
    config: Config = None,
    tenant: Annotated[str, typer.Option("--tenant", help="Only this tenant's spaces. Default: all.")] = "",
    space: Annotated[str, typer.Option("--space", help="Only this space of the tenant.")] = "",
    repair: Annotated[bool, typer.Option(help="Repair what is wrong.")] = True,
) -> None:
    """Compare vectors, statistics and windows with the records, and repair them. Exit code 1: something was wrong."""
    from janus_app.memory.upkeep import verify as work

    with _stores(data, tenant, space) as folder:
        well = work(Console(), folder, config, os.environ, tenant, space, repair=repair)
    if not well:
        raise typer.Exit(1)


@memory_app.command()
def reindex(
    data: Data = None,
    address: Address = None,
    tenant: Tenant = "",
    space: Space = "",
    backend: Annotated[str, typer.Option(help="pgvector or chroma. Default: as it is.")] = "",
    model: Annotated[str, typer.Option(help="Embedding model. Default: as it is.")] = "",
    dimensions: Annotated[int, typer.Option(min=0, max=4096, help="Length of vectors. Default: the model's.")] = 0,
    wait: Annotated[bool, typer.Option(help="Follow it to its end.")] = True,
    timeout: Timeout = 86_400.0,
) -> None:
    """Rebuild a space's vectors, with another model or on another backend if asked, while it is used."""
    from janus_app.memory.rebuilding import reindex as work
    from janus_app.memory.rebuilding import reindex_request

    request = reindex_request(space, backend, model, dimensions)
    with _calls(data, address, tenant, timeout) as calls:
        if not work(Console(), calls, request, wait=wait):
            raise typer.Exit(1)


@memory_app.command()
def operation(
    operation_id: Annotated[str, typer.Argument(help="Id of an operation, as `reindex --no-wait` prints it.")],
    data: Data = None,
    address: Address = None,
    tenant: Tenant = "",
    cancel: Annotated[bool, typer.Option("--cancel", help="Ask it to stop.")] = False,
    wait: Annotated[bool, typer.Option(help="Follow it to its end.")] = True,
    timeout: Timeout = 86_400.0,
) -> None:
    """How a long-running operation is. Exit code 1: it failed or was cancelled."""
    from janus_app.memory.rebuilding import follow as work

    with _calls(data, address, tenant, timeout) as calls:
        if not work(Console(), calls, operation_id, cancel=cancel, wait=wait):
            raise typer.Exit(1)


@memory_app.command("dead-letters")
def dead_letters(
    data: Data = None,
    config: Config = None,
    tenant: Annotated[str, typer.Option("--tenant", help="Only this tenant's. Default: all.")] = "",
    space: Annotated[str, typer.Option("--space", help="Only this space of the tenant.")] = "",
    replay: Annotated[bool, typer.Option("--replay", help="Have them tried again.")] = False,
) -> None:
    """What could not be indexed, or extracted by a model, and why."""
    from janus_app.memory.upkeep import dead_letters as work

    with _stores(data, tenant, space) as folder:
        work(Console(), folder, config, os.environ, tenant, space, replay=replay)
