"""What tables look like where there is little room, and where there is no terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from janus_api.content.v1 import usage_pb2
from janus_api.orchestration.v1 import agent_pb2, run_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_app.runs import agents, showing

RUN = "run_01m8hakwrxe32dmfwyv5kzq1vm"
THREAD = "thr_01m8hakwrxe32dmfwyv5kzq1vn"
TOOLS = ["memory.remember", "calendar.appointments", "agent.handoff", "time.now"]


class Answers:
    """Calls that are all answered with the same."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def unary(self, method: str, request: Any) -> Any:
        return self._answer


def run() -> run_pb2.Run:
    usage = usage_pb2.Usage(input_uncached_tokens=12_345, output_tokens=678, cost_micro_usd=1234)
    made = run_pb2.Run(id=RUN, thread_id=THREAD, agent="helper", state=run_pb2.RUN_STATE_WAITING_APPROVAL, usage=usage)
    for stamp, seconds in ((made.created_at, 0), (made.started_at, 1), (made.ended_at, 101)):
        stamp.FromSeconds(1_700_000_000 + seconds)
    for index, summary in enumerate(["calendar.appointments", "the provider " * 9], 1):
        step = made.steps.add(index=index, kind=run_pb2.STEP_KIND_MODEL_CALL, attempts=1, usage=usage, summary=summary)
        step.started_at.CopyFrom(made.started_at)
        step.ended_at.CopyFrom(made.ended_at)
    return made


def shown(what: str, *, width: int, terminal: bool) -> str:
    screen = io.StringIO()
    console = Console(file=screen, width=width, force_terminal=terminal, color_system=None)
    listed = agent_pb2.Agent(
        name="the-helper-of-all",
        version=12,
        model="anthropic/claude-sonnet-4-5",
        description="Answers what others cannot, and asks them where it cannot.",
        tools=[agent_pb2.AgentTool(name=name) for name in TOOLS],
    )
    match what:
        case "runs":
            showing.show_list(console, Answers(pb.ListRunsResponse(runs=[run()])), "", [], 1, as_json=False)  # type: ignore[arg-type]
        case "run":
            showing.show(console, run(), as_json=False)
        case "agents":
            agents.show_list(console, Answers(pb.ListAgentsResponse(agents=[listed])), as_json=False)  # type: ignore[arg-type]
    return screen.getvalue()


WORDS = {
    "runs": [RUN, "waiting_approval", "helper"],
    "run": [RUN, THREAD, "1 model call", "1 min 40 s", "12345 in, 678 out", "calendar.appointments"],
    "agents": ["the-helper-of-all", "anthropic/claude-sonnet-4-5", *TOOLS],
}


@pytest.mark.parametrize("what", WORDS)
def test_nothing_is_cut_at_eighty_columns(what: str) -> None:
    told = shown(what, width=80, terminal=True)
    assert "…" not in told
    assert all(word in told for word in WORDS[what])
    assert max(map(len, told.splitlines())) <= 80


@pytest.mark.parametrize("what", WORDS)
def test_ids_and_names_are_whole_even_where_there_is_no_room(what: str) -> None:
    told = shown(what, width=40, terminal=True)
    assert "…" not in told
    assert all(word in told for word in WORDS[what])


def test_a_row_is_a_line_with_all_there_is_in_a_pipe() -> None:
    (_, row) = shown("runs", width=80, terminal=False).splitlines()
    assert all(word in row for word in (RUN, THREAD, "2023-11-14", "1 min 40 s", "12345 in, 678 out", "$0.001234"))
    (_, row) = shown("agents", width=80, terminal=False).splitlines()
    assert all(word in row for word in (*TOOLS, "12", "enqueue", "asks them where it cannot."))


def test_a_wide_terminal_shows_every_column() -> None:
    told = shown("runs", width=160, terminal=True)
    assert all(word in told for word in (THREAD, "created", "took", "tokens", "cost"))
    assert "█" in shown("run", width=160, terminal=True)
