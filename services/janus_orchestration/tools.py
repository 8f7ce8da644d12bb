"""The tools of an agent: found in all sources, and their arguments checked."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any

from janus_kit import json_schema
from janus_kit.json_schema.rules import BrokenRule, read
from janus_orchestration.model import (
    AgentSpec,
    AgentTool,
    ApprovalPolicy,
    PendingKind,
    SideEffect,
    Tool,
    Verdict,
    WhenNoWorker,
)
from janus_orchestration.ports import ToolSource

_MAX_CONCURRENCY = 8
LONGEST_WAIT = timedelta(days=7)
"""For a person, and for a client's result, where an agent does not say."""


@dataclass(frozen=True, slots=True)
class Offered:
    """A tool as one agent may use it; nobody runs it without ``source``."""

    tool: Tool
    source: ToolSource | None
    timeout_s: float
    max_concurrency: int
    when_no_worker: WhenNoWorker = WhenNoWorker.FAIL
    needs_approval: bool = False
    approved_within: timedelta = LONGEST_WAIT
    without_approval: Verdict = Verdict.DECLINED


class BadArguments(Exception):
    """A call's arguments are not what the tool takes; the text is for the model."""


class Toolbox:
    """All sources of tools; where two offer the same name, the first has it."""

    def __init__(self, sources: Sequence[ToolSource]) -> None:
        self._sources = sources

    async def find(self, tenant: str, names: Collection[str]) -> dict[str, tuple[Tool, ToolSource]]:
        """The tools of these names that somebody offers."""
        found: dict[str, tuple[Tool, ToolSource]] = {}
        for source in self._sources:
            if missing := [name for name in names if name not in found]:
                found |= {tool.name: (tool, source) for tool in await source.find(tenant, missing)}
        return found

    async def offered(self, tenant: str, agent: AgentSpec) -> dict[str, Offered]:
        """What an agent's model may call now, in the agent's order."""
        found: dict[str, tuple[Tool, ToolSource | None]] = {
            **await self.find(tenant, [wanted.name for wanted in agent.tools if not wanted.client_side]),
            **{wanted.name: (_client_side(wanted), None) for wanted in agent.tools if wanted.client_side},
        }
        policy = agent.approval or ApprovalPolicy()
        return {
            wanted.name: as_granted(wanted, policy, *found[wanted.name])
            for wanted in agent.tools
            if wanted.name in found
        }


def as_granted(wanted: AgentTool, policy: ApprovalPolicy, tool: Tool, source: ToolSource | None) -> Offered:
    """A tool with what its agent says about it."""
    timeout = wanted.timeout or tool.timeout
    return Offered(
        tool,
        source,
        timeout.total_seconds(),
        wanted.max_concurrency or _MAX_CONCURRENCY,
        wanted.when_no_worker or WhenNoWorker.FAIL,
        needs_approval=wanted.needs_approval or wanted.name in policy.tools,
        approved_within=policy.expires_after or LONGEST_WAIT,
        without_approval=policy.on_expiry or Verdict.DECLINED,
    )


def _client_side(tool: AgentTool) -> Tool:
    """A tool that its agent describes, and whose calls the client of the run answers."""
    return Tool(
        tool.name,
        tool.description,
        tool.parameters_schema_json,
        SideEffect.AT_MOST_ONCE,
        LONGEST_WAIT,
        answered_by=PendingKind.TOOL,
    )


def arguments_of(tool: Tool, text: str) -> Mapping[str, Any]:
    """The arguments, if they are a JSON object that holds to the tool's schema. Raises BadArguments."""
    try:
        value = read(text)
    except BrokenRule as broken:
        raise BadArguments(f"the arguments {broken}") from None
    if not isinstance(value, dict):
        raise BadArguments("the arguments must be a JSON object")
    if problem := json_schema.problem(value, _schema(tool.schema_json)):
        raise BadArguments(f"the arguments do not hold to the tool's schema: {problem}")
    return value


@lru_cache(maxsize=256)
def _schema(text: str) -> Any:
    return json.loads(text) if text else {"additionalProperties": False}
