"""The tools by which an agent brings others in: `agent.handoff` and `agent.ask`.

Their schemas name whom the run may bring in: those that its agent names, that
are there, and that are not at work in it already, here or above. So a circle,
or a chain that would become too long, is refused like any other bad argument.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta

from janus_orchestration.model import (
    AgentSpec,
    AgentTool,
    ApprovalPolicy,
    PendingKind,
    SideEffect,
    Tool,
    ToolOutput,
)
from janus_orchestration.ports import ToolReport, ToolTask
from janus_orchestration.tools import LONGEST_WAIT, Offered, as_granted

HANDOFF, ASK = "agent.handoff", "agent.ask"

_TIMEOUT = timedelta(seconds=60)


def names_of(spec: AgentSpec) -> tuple[str, ...]:
    """The tools that an agent has because of the agents that it names."""
    return tuple(name for name, others in ((HANDOFF, spec.handoffs), (ASK, spec.sub_agents)) if others)


def offered(spec: AgentSpec, there: Mapping[str, str], at_work: Collection[str], most: int) -> dict[str, Offered]:
    """What the agent's model may call now.

    ``there``: the agents that there are, with what they are for. ``at_work``:
    those of the run and of the runs above it, of which there are at most
    ``most``.
    """
    if len(at_work) >= most:
        return {}
    policy = spec.approval or ApprovalPolicy()
    found = {}
    for others, describe, source in ((spec.handoffs, _handoff, Handoffs()), (spec.sub_agents, _ask, None)):
        free = {name: there[name] for name in others if name in there and name not in at_work}
        if free:
            tool = describe(free)
            found[tool.name] = as_granted(AgentTool(tool.name), policy, tool, source)
    return found


class Handoffs:
    """Answers calls of `agent.handoff`; the run hands over when all calls of the answer have their results."""

    knows_calls = False

    async def find(self, tenant: str, names: Collection[str]) -> Sequence[Tool]:
        return ()

    async def call(self, tenant: str, task: ToolTask, report: ToolReport) -> ToolOutput:
        await report.started()
        agent = task.arguments["agent"]
        return ToolOutput(f"the conversation is with '{agent}' now", hands_to=agent)


def _handoff(others: Mapping[str, str]) -> Tool:
    return Tool(
        HANDOFF,
        "Hands the conversation over to another agent, who sees all of it and answers instead of you. "
        f"There are:\n{_listed(others)}",
        _schema({"agent": {"type": "string", "enum": list(others), "description": "Who is to go on."}}),
        # Until the run ends, nothing has happened.
        SideEffect.IDEMPOTENT,
        _TIMEOUT,
    )


def _ask(others: Mapping[str, str]) -> Tool:
    return Tool(
        ASK,
        "Has another agent do something and answers with what it says. It sees nothing of this conversation but the "
        f"task. There are:\n{_listed(others)}",
        _schema(
            {
                "agent": {"type": "string", "enum": list(others), "description": "Who is asked."},
                "task": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 100_000,
                    "pattern": r"\S",
                    "description": "What to do, clear without this conversation.",
                },
            }
        ),
        SideEffect.IDEMPOTENT,
        LONGEST_WAIT,
        answered_by=PendingKind.AGENT,
    )


def _listed(others: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {what}" if what else f"- {name}" for name, what in others.items())


def _schema(properties: Mapping[str, object]) -> str:
    schema = {"type": "object", "properties": properties, "additionalProperties": False, "required": list(properties)}
    return json.dumps(schema, ensure_ascii=False)
