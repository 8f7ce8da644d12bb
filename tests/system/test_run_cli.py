"""`janus run`, `janus agent` and `janus chat --resume` at a real mesh with the rehearsal model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.system.driver import Server, eventually, server, user
from typer.testing import CliRunner, Result

from janus_api.common.v1 import status_service_pb2 as status_pb
from janus_api.orchestration.v1 import agent_pb2, run_pb2, thread_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_app.client import Mesh, connect
from janus_app.commands import app

SLOW = "/pace 300 /long 200"


@pytest.fixture
def janus(served: Server, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A command of a tenant of its own, unless it takes none."""
    monkeypatch.setenv("JANUS_DATA", str(served.data))
    monkeypatch.setenv("COLUMNS", "250")
    for name in ("JANUS_ADDRESS", "JANUS_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    runner = CliRunner()
    tenant = f"t{uuid.uuid4().hex[:8]}"

    def invoke(*arguments: str, code: int = 0, **options: Any) -> Result:
        own = () if arguments[0] == "chat" else ("--tenant", tenant)
        result = runner.invoke(app, [*arguments, *own], **options)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    return invoke


@pytest.fixture
def careful_agent() -> str:
    """A file of an agent that asks before it looks at the clock."""
    return json.dumps({"name": "careful", "tools": [{"name": "time.now", "needs_approval": True}]})


@pytest.fixture
def careful(janus: Any, careful_agent: str) -> str:
    return str(janus("agent", "put", "-", input=careful_agent).stdout).split(",")[0]


def started(janus: Any, *arguments: str) -> str:
    return str(janus("run", "start", *arguments).stdout.strip())


def state(janus: Any, run_id: str) -> str:
    return str(json.loads(janus("run", "show", run_id, "--json").stdout)["state"])


def until_state(janus: Any, run_id: str, *states: str) -> None:
    eventually(lambda: state(janus, run_id) in {f"RUN_STATE_{each}" for each in states})


def test_a_run_is_started_watched_and_shown_with_its_timeline(janus: Any, tmp_path: Path) -> None:
    file = tmp_path / "helper.yaml"
    file.write_text("name: helper\ndescription: tells the time\ntools:\n  - name: time.now\n    timeout: 5s\n")
    assert janus("agent", "put", str(file)).stdout.strip() == "helper, version 1"
    assert janus("agent", "put", str(file)).stdout.strip() == "helper, version 1"
    begun = janus("run", "start", "/call time.now {}", "--agent", "helper", "--label", "team=blue")
    run_id = begun.stdout.strip()
    assert f"janus run watch {run_id} --tenant t" in begun.stderr
    watched = janus("run", "watch", run_id).stdout
    assert "⚙ time.now" in watched
    assert "rehearsal" in watched
    shown = janus("run", "show", run_id).stdout
    assert "completed" in shown
    assert "helper, version 1" in shown
    assert "team=blue" in shown
    steps = [line.split() for line in shown.splitlines() if "█" in line]
    assert [" ".join(words[1:3]) for words in steps] == ["recall 1", "model call", "tool call", "model call", "store 1"]
    assert [" ".join(words[:1]) for words in steps] == ["1", "2", "3", "4", "5"]
    assert all("s" in words for words in steps)
    assert " in, " in shown
    assert "$" in shown or "unknown" in shown
    assert "time.now" in next(line for line in shown.splitlines() if "tool call" in line)
    row = janus("run", "list").stdout
    assert run_id in row
    assert "completed" in row
    listed = janus("agent", "list").stdout
    assert "tells the time" in listed
    assert "enqueue" in listed
    (as_json,) = janus("agent", "list", "--json").stdout.splitlines()
    assert json.loads(as_json)["name"] == "helper"


def test_a_run_that_goes_on_is_listed_cancelled_and_said_to_be_so(janus: Any) -> None:
    run_id = started(janus, SLOW, "--subject", "ada")
    until_state(janus, run_id, "RUNNING")
    assert run_id in janus("run", "list", "--state", "running", "--state", "queued").stdout
    assert "There are none" in janus("run", "list", "--state", "completed").stdout
    thread = json.loads(janus("run", "show", run_id, "--json").stdout)["thread_id"]
    waiting = started(janus, "and then?", "--thread", thread)
    rows = [json.loads(line) for line in janus("run", "list", "--thread", thread, "--json").stdout.splitlines()]
    assert [(row["id"], row["state"]) for row in rows] == [
        (waiting, "RUN_STATE_QUEUED"),
        (run_id, "RUN_STATE_RUNNING"),
    ]
    assert "running" in janus("run", "show", run_id).stdout
    said = janus("run", "cancel", run_id, "--reason", "enough").stdout
    assert "cancel" in said
    told = janus("run", "watch", run_id, code=1).stdout
    assert "cancelled: enough" in told
    janus("run", "watch", waiting)
    assert "cancelled" in janus("run", "cancel", run_id).stdout
    assert "completed" in janus("run", "cancel", waiting).stdout


def test_a_repeated_start_is_the_same_run(janus: Any) -> None:
    assert started(janus, "hello", "--request-id", "r1") == started(janus, "hello", "--request-id", "r1")
    assert "REQUEST_ID" in janus("run", "start", "other", "--request-id", "r1", code=1).stderr.upper().replace(" ", "_")


def test_what_is_said_may_come_from_elsewhere(janus: Any) -> None:
    run_id = janus("run", "start", "-", input="hello from a pipe\n").stdout.strip()
    janus("run", "watch", run_id)
    spec = json.dumps({"name": "piped", "instructions": "be brief"})
    assert janus("agent", "put", "-", input=spec).stdout.strip() == "piped, version 1"


def test_ctrl_c_leaves_a_run_going_and_says_how_to_come_back(served: Server, mesh: Mesh) -> None:
    # Tests that a shell runs in the background were told to ignore SIGINT, and what they start inherits it.
    # A preexec_fn would mend that by a fork, which now and then kills the child of a process with threads in gRPC.
    heeding = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [sys.executable, "-m", "janus_app", "run", "start", "/pace 100 /long 60", "--watch"]
    process = subprocess.Popen(
        [sys.executable, "-c", heeding, *command],
        env={**os.environ, "JANUS_DATA": str(served.data), "COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    run_id = process.stdout.readline().strip()
    assert run_id

    def speaks() -> bool:
        return mesh.orchestration.GetRun(pb.GetRunRequest(run_id=run_id)).run.last_event.sequence > 8

    eventually(speaks)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130, (out, err)
    assert "goes on without you" in out
    assert f"janus run watch {run_id}" in out
    assert "Traceback" not in err

    def has_ended() -> bool:
        run = mesh.orchestration.GetRun(pb.GetRunRequest(run_id=run_id)).run
        assert run.state != run_pb2.RUN_STATE_CANCELLED
        return bool(run.state == run_pb2.RUN_STATE_COMPLETED)

    eventually(has_ended, 60)


def test_what_cannot_be_done_is_said_in_a_line(janus: Any, tmp_path: Path) -> None:
    assert "NOT_FOUND" in janus("run", "show", "run_absent", code=1).stderr
    assert "NOT_FOUND" in janus("run", "watch", "run_absent", code=1).stderr
    assert "NOT_FOUND" in janus("run", "cancel", "run_absent", code=1).stderr
    assert "no label" in janus("run", "start", "hi", "--label", "team", code=2).stderr
    assert "running" in janus("run", "list", "--state", "lazy", code=2).stderr
    assert "no Agent of the contract" in janus("agent", "put", "-", input="name: a\nmodell: b\n", code=1).stderr
    assert "neither YAML nor JSON" in janus("agent", "put", "-", input="{", code=1).stderr
    assert "describes no agent" in janus("agent", "put", "-", input="- a\n", code=1).stderr
    absent = str(tmp_path / "absent.yaml")
    told = janus("agent", "put", absent, code=1).stderr
    assert told == f"{absent} cannot be read: No such file or directory\n"
    assert "agent.tools[0].name" in janus("agent", "put", "-", input="{name: a, tools: [{name: nope}]}", code=1).stderr
    assert "version" in janus("agent", "put", "-", "--expected-version", "7", input="name: a", code=1).stderr
    run_id = started(janus, "hello")
    janus("run", "watch", run_id)
    assert "nobody's consent" in janus("run", "approve", run_id, code=1).stderr
    # The words of models and people are no markup, and nothing that a terminal acts on.
    run_id = started(janus, "hello", "--label", "l=[red]x[/red]\x1b[2J")
    shown = janus("run", "show", run_id).stdout
    assert "[red]x[/red]" in shown
    assert "\x1b" not in shown


def test_a_chat_is_gone_on_with(janus: Any, mesh: Mesh) -> None:
    subject = f"s{uuid.uuid4().hex[:8]}"
    fresh = janus("chat", "--resume", "--subject", subject, input="The kettle is blue.\n/quit\n").stdout
    thread = fresh.split("thread ")[1].split()[0]
    again = janus("chat", "--resume", "--subject", subject, input="/quit\n").stdout
    assert f"thread {thread}" in again
    assert "you › The kettle is blue." in again
    assert "janus › This is a rehearsal" in again
    # A run that was left is shown to its end first.
    message = user("/pace 50 /long 12", subject)
    asked = pb.StartRunRequest(input=pb.RunInput(thread_id=thread, messages=[message]))
    run_id = mesh.orchestration.StartRun(asked).run.id
    janus("chat", "--resume", "--subject", subject, input="/quit\n")
    state_then = mesh.orchestration.GetRun(pb.GetRunRequest(run_id=run_id)).run.state
    assert state_then == run_pb2.RUN_STATE_COMPLETED
    # Without --resume it is another thread; one that is named is the named one.
    assert f"thread {thread}" not in janus("chat", "--subject", subject, input="/quit\n").stdout
    other = mesh.orchestration.CreateThread(
        pb.CreateThreadRequest(thread=thread_pb2.Thread(subject=subject), messages=[user("from before", subject)])
    ).thread.id
    named = janus("chat", "--resume", "--thread", other, "--subject", subject, input="/quit\n").stdout
    assert "you › from before" in named
    assert "NOT_FOUND" in janus("chat", "--resume", "--thread", "absent", code=1).stderr


def test_a_run_waits_for_the_consent_that_is_given_or_refused_at_the_terminal(janus: Any, careful: str) -> None:
    run_id = started(janus, "/call time.now {}", "--agent", careful)
    until_state(janus, run_id, "WAITING_APPROVAL")
    assert run_id in janus("run", "list", "--state", "waiting_approval").stdout
    shown = janus("run", "show", run_id).stdout
    assert "waits for consent" in shown
    assert "time.now {}" in shown
    told = next(line for line in shown.splitlines() if "janus run approve" in line)
    # As it is told, it works.
    command = told.split("[")[0].split()[1:]
    assert command[-2] == "--tenant"
    assert "approved" in janus(*command[:-2]).stdout
    watched = janus("run", "watch", run_id).stdout
    assert "approved by developer" in watched
    assert "The tool time.now answered" in watched
    assert state(janus, run_id) == "RUN_STATE_COMPLETED"
    assert "APPROVED" in janus("run", "approve", *command[2:4], "--decline", code=1).stderr.upper()

    run_id = started(janus, '/call time.now {}\n/call time.now {"time_zone": "UTC"}', "--agent", careful)
    until_state(janus, run_id, "WAITING_APPROVAL")
    ambiguous = janus("run", "approve", run_id, code=1).stderr
    assert "more than one" in ambiguous
    first, second = ambiguous.split(": ")[-1].replace(",", "").split()
    assert "declined" in janus("run", "approve", run_id, first, "--decline", "--comment", "not on a Friday").stdout
    assert "approved" in janus("run", "approve", run_id, second).stdout
    watched = janus("run", "watch", run_id).stdout
    assert "The tool time.now failed with: the call was declined: not on a Friday" in watched
    assert "The tool time.now answered" in watched


def test_a_chat_that_is_gone_on_with_asks_what_its_run_asks(janus: Any, mesh: Mesh) -> None:
    spec = agent_pb2.Agent(
        name="asks",
        tools=[agent_pb2.AgentTool(name="time.now", needs_approval=True), agent_pb2.AgentTool(name="user.ask")],
    )
    mesh.orchestration.PutAgent(pb.PutAgentRequest(agent=spec))
    made = pb.CreateThreadRequest(thread=thread_pb2.Thread(agent="asks"))
    thread = mesh.orchestration.CreateThread(made).thread.id
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    asks = json.dumps({"question": "How many?", "schema": schema})
    asked = pb.RunInput(thread_id=thread, messages=[user(f"/call time.now {{}}\n/call user.ask {asks}")])
    run_id = mesh.orchestration.StartRun(pb.StartRunRequest(input=asked)).run.id
    # Nobody is there: it waits on.
    left = janus("chat", "--resume", "--thread", thread, input="").stdout
    assert f"janus chat --resume --thread {thread}" in left
    assert mesh.orchestration.GetRun(pb.GetRunRequest(run_id=run_id)).run.state == run_pb2.RUN_STATE_WAITING_APPROVAL
    typed = 'perhaps\ny\nseven\n{"n": 7}\n/call time.now {}\nn later\n/quit\n'
    said = janus("chat", "--resume", "--thread", thread, input=typed).stdout
    assert "answer.answer_json" in said
    assert 'The tool user.ask answered: {"n": 7}' in said
    assert said.count("The tool time.now answered") == 1
    assert "The tool time.now failed with: the call was declined: later" in said
    run = mesh.orchestration.GetRun(pb.GetRunRequest(run_id=run_id)).run
    assert run.state == run_pb2.RUN_STATE_COMPLETED
    # What was answered is not asked again when it is shown again.
    again = janus("chat", "--resume", "--thread", thread, input="/quit\n").stdout
    assert "may it run" not in again


def test_a_run_that_waits_survives_kill_9_of_everything(janus: Any, careful_agent: str) -> None:
    with server() as served:
        here = ("--data", str(served.data))
        janus("agent", "put", "-", *here, input=careful_agent)
        run_id = started(janus, "/call time.now {}", "--agent", "careful", *here)

        def waits() -> bool:
            return "waiting_approval" in str(janus("run", "show", run_id, *here).stdout)

        eventually(waits)
        served.kill()
        served.start()
        assert waits()
        janus("run", "approve", run_id, *here)
        assert "The tool time.now answered" in janus("run", "watch", run_id, *here).stdout
        (row,) = janus("run", "list", "--json", *here).stdout.splitlines()
        assert json.loads(row)["state"] == "RUN_STATE_COMPLETED"
        assert "takeovers" not in json.loads(row)


def test_a_watch_that_begins_while_the_mesh_drains_waits_for_the_next_one(janus: Any) -> None:
    with server() as served:
        here = ("--data", str(served.data))
        told = janus("run", "start", "/pace 100 /long 60", *here).stderr
        with connect(served.data) as mesh:
            assert served.process is not None
            served.process.terminate()

            def is_refused() -> bool:
                try:
                    mesh.status.GetStatus(status_pb.GetStatusRequest(), timeout=5)
                except grpc.RpcError:
                    return True
                return False

            eventually(is_refused)
        words = next(line for line in told.splitlines() if line.startswith("Watch it: janus ")).split()[3:]
        command = [sys.executable, "-m", "janus_app", *words, *here]
        watching = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert watching.stderr is not None
            assert watching.stderr.readline() == "the mesh stops or starts; waiting for it, up to 75 s …\n"
            served.process.wait(30)
            served.start()
            out, err = watching.communicate(timeout=30)
        finally:
            watching.kill()
        assert (watching.returncode, err) == (0, "")
        assert "word60" in out


def test_without_a_mesh_it_is_said_how_to_start_one(janus: Any, tmp_path: Path) -> None:
    for command in (
        ["run", "start", "x"],
        ["run", "watch", "run_x"],
        ["run", "list"],
        ["run", "show", "run_x"],
        ["run", "cancel", "run_x"],
        ["run", "approve", "run_x", "apr_x"],
        ["agent", "list"],
        ["chat", "--resume"],
    ):
        assert "janus serve" in janus(*command, "--data", str(tmp_path / "empty"), code=1).stderr
