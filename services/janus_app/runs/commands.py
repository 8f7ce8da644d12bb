"""The commands of `janus run` and `janus agent`. Each one's work is in a module of this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from janus_app.calls import Calls, mesh_of

run_app = typer.Typer(help="Start runs in the background, watch, list and stop them.", no_args_is_help=True)
agent_app = typer.Typer(help="Agents as data.", no_args_is_help=True)

Data = Annotated[
    Path | None, typer.Option("--data", help="Data folder. Default: $JANUS_DATA, else ~/.local/share/janus.")
]
Address = Annotated[
    str | None,
    typer.Option("--address", envvar="JANUS_ADDRESS", help="host:port of a mesh. Default: the one of the data folder."),
]
Tenant = Annotated[str, typer.Option("--tenant", help="Whose runs. Default: the development tenant.")]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON, for programs.")]
RunId = Annotated[str, typer.Argument(help="Id of a run, as `janus run start` prints it.")]

_CALL_S = 30.0
_WATCH_S = 86_400.0


@contextmanager
def _calls(
    data: Path | None, address: str | None, tenant: str, timeout: float = _CALL_S, *, waits: bool = False
) -> Iterator[Calls]:
    with mesh_of(data, address, waits=waits) as mesh:
        yield Calls(mesh.orchestration, tenant, timeout)


@run_app.command()
def start(
    text: Annotated[str, typer.Argument(help="What to say; `-` reads standard input.")],
    data: Data = None,
    address: Address = None,
    tenant: Tenant = "",
    thread: Annotated[str, typer.Option(help="Thread to say it in. Default: a new one.")] = "",
    agent: Annotated[str, typer.Option(help="Agent that answers. Default: the thread's, else `default`.")] = "",
    subject: Annotated[str, typer.Option(help="Who says it; memories belong to it.")] = "",
    model: Annotated[str, typer.Option(help="Model or alias. Default: the agent's.")] = "",
    label: Annotated[list[str] | None, typer.Option(help="key=value; may be repeated.")] = None,
    request_id: Annotated[str, typer.Option(help="Makes a repeated start the same run.")] = "",
    watch: Annotated[bool, typer.Option("--watch", help="Follow it; Ctrl-C leaves it going.")] = False,
    as_json: Json = False,
) -> None:
    """Start a run in the background; its id is printed when it is durable."""
    from janus_app.runs.starting import hint, labels_of
    from janus_app.runs.starting import start as work
    from janus_app.runs.starting import watch as follow
    from janus_app.terminal import print_json

    labels = labels_of(label or [])
    with _calls(data, address, tenant, _WATCH_S if watch else _CALL_S) as calls:
        run = work(
            calls,
            text,
            thread=thread,
            agent=agent,
            subject=subject,
            model=model,
            labels=labels,
            request_id=request_id,
        )
        if as_json:
            print_json(run)
        else:
            typer.echo(run.id)
        if not watch:
            hint(Console(stderr=True), calls, run.id)
            return
        code = follow(Console(stderr=as_json), calls, run.id, as_json=as_json)
    raise typer.Exit(code)


@run_app.command()
def watch(
    run_id: RunId, data: Data = None, address: Address = None, tenant: Tenant = "", as_json: Json = False
) -> None:
    """Follow a run from its beginning to its end. Exit code 1: it did not complete. Ctrl-C leaves it going."""
    from janus_app.runs.starting import watch as work

    with _calls(data, address, tenant, _WATCH_S, waits=True) as calls:
        code = work(Console(stderr=as_json), calls, run_id, as_json=as_json)
    raise typer.Exit(code)


@run_app.command("list")
def list_(
    data: Data = None,
    address: Address = None,
    tenant: Tenant = "",
    thread: Annotated[str, typer.Option(help="Only runs of this thread.")] = "",
    state: Annotated[
        list[str] | None, typer.Option(help="Only in this state, e.g. running; may be repeated. Default: all.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Most runs.")] = 20,
    as_json: Json = False,
) -> None:
    """Runs, newest first."""
    from janus_app.runs.showing import show_list, states_of

    states = states_of(state or [])
    with _calls(data, address, tenant) as calls:
        show_list(Console(), calls, thread, states, limit, as_json=as_json)


@run_app.command()
def show(run_id: RunId, data: Data = None, address: Address = None, tenant: Tenant = "", as_json: Json = False) -> None:
    """One run, with the timeline of its steps: tries, durations, tokens, cost."""
    from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
    from janus_app.runs.showing import show as work

    with _calls(data, address, tenant) as calls:
        run = calls.unary("GetRun", pb.GetRunRequest(run_id=run_id)).run
        work(Console(), run, as_json=as_json, whose=calls.whose)


@run_app.command()
def cancel(
    run_id: RunId,
    data: Data = None,
    address: Address = None,
    tenant: Tenant = "",
    reason: Annotated[str, typer.Option(help="For whoever watches it.")] = "",
    as_json: Json = False,
) -> None:
    """Ask a run to stop. One that has ended stays as it is."""
    from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
    from janus_app.runs.showing import say_state

    with _calls(data, address, tenant) as calls:
        request = pb.CancelRunRequest(run_id=run_id, reason=reason)
        say_state(Console(), calls.unary("CancelRun", request).run, as_json=as_json)


@run_app.command()
def approve(
    run_id: RunId,
    approval_id: Annotated[str, typer.Argument(help="What to answer. Default: the only thing that it waits for.")] = "",
    data: Data = None,
    address: Address = None,
    tenant: Tenant = "",
    decline: Annotated[bool, typer.Option("--decline", help="The call may not run.")] = False,
    comment: Annotated[str, typer.Option(help="For the model, when declined; at most 1,024 characters.")] = "",
    as_json: Json = False,
) -> None:
    """Give or refuse the consent that a run waits for."""
    from janus_api.orchestration.v1 import agent_pb2
    from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
    from janus_app.runs.showing import say_decision, the_approval

    decision = agent_pb2.APPROVAL_DECISION_DECLINED if decline else agent_pb2.APPROVAL_DECISION_APPROVED
    with _calls(data, address, tenant) as calls:
        if not approval_id:
            approval_id = the_approval(calls.unary("GetRun", pb.GetRunRequest(run_id=run_id)).run)
        answer = pb.ApprovalAnswer(run_id=run_id, approval_id=approval_id, decision=decision, comment=comment)
        run = calls.unary("ResolveApproval", pb.ResolveApprovalRequest(approval=answer)).run
        say_decision(Console(), run, decision, as_json=as_json)


@agent_app.command()
def put(
    file: Annotated[str, typer.Argument(help="An Agent of the contract as YAML or JSON; `-` reads standard input.")],
    data: Data = None,
    address: Address = None,
    tenant: Tenant = "",
    expected_version: Annotated[int, typer.Option(min=0, help="The version that must be current. 0: any.")] = 0,
    as_json: Json = False,
) -> None:
    """Store an agent as a new version; the same content keeps its version."""
    from janus_app.runs.agents import put as work

    with _calls(data, address, tenant) as calls:
        work(Console(), calls, file, expected_version, as_json=as_json)


@agent_app.command("list")
def list_agents(data: Data = None, address: Address = None, tenant: Tenant = "", as_json: Json = False) -> None:
    """Agents by name, the newest version of each."""
    from janus_app.runs.agents import show_list

    with _calls(data, address, tenant) as calls:
        show_list(Console(), calls, as_json=as_json)
