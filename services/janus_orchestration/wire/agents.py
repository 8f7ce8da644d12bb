"""Agents and budgets: decode, check, encode."""

from collections.abc import Sequence

from janus_api.inference.v1 import request_pb2
from janus_api.orchestration.v1 import agent_pb2 as pb
from janus_kit.validate import Violations
from janus_orchestration.model import (
    Agent,
    AgentSpec,
    AgentTool,
    Budgets,
    DoubleTexting,
    MemoryPolicy,
    RecallScope,
    WhenNoWorker,
)
from janus_orchestration.wire.content import duration, refuse, time_of, timestamp
from janus_orchestration.wire.tools import check_tool_name

_MAX_INSTRUCTIONS = 256 * 1024
_MAX_TOKENS = 1_000_000
_MAX_TOOLS = 128
_DEFAULTS = MemoryPolicy()

_DOUBLE_TEXTING = {
    pb.DOUBLE_TEXTING_ENQUEUE: DoubleTexting.ENQUEUE,
    pb.DOUBLE_TEXTING_REJECT: DoubleTexting.REJECT,
    pb.DOUBLE_TEXTING_INTERRUPT: DoubleTexting.INTERRUPT,
    pb.DOUBLE_TEXTING_ROLLBACK: DoubleTexting.ROLLBACK,
}
_WHEN_NO_WORKER = {
    pb.WHEN_NO_WORKER_FAIL: WhenNoWorker.FAIL,
    pb.WHEN_NO_WORKER_WAIT: WhenNoWorker.WAIT,
}
_RECALL_SCOPES = {
    pb.RECALL_SCOPE_UNSPECIFIED: RecallScope.SUBJECT,
    pb.RECALL_SCOPE_SUBJECT: RecallScope.SUBJECT,
    pb.RECALL_SCOPE_THREAD: RecallScope.THREAD,
    pb.RECALL_SCOPE_SPACE: RecallScope.SPACE,
}
# (field, least, most); top_p may not be 0 itself.
_SAMPLING = (
    ("temperature", 0, 2),
    ("top_p", 1e-9, 1),
    ("top_k", 1, 2**31 - 1),
    ("frequency_penalty", -2, 2),
    ("presence_penalty", -2, 2),
    ("top_logprobs", 0, 20),
)


def spec_from(agent: pb.Agent) -> AgentSpec:
    """A checked agent. Raises InvalidArgument, or Unimplemented naming the field."""
    check = Violations()
    check.id("agent.name", agent.name)
    check.length("agent.model", agent.model, at_most=256)
    check.length("agent.description", agent.description, at_most=1_024)
    check.require("\x00" not in agent.instructions, "agent.instructions", "must not contain NUL characters")
    check.require(
        len(agent.instructions.encode()) <= _MAX_INSTRUCTIONS, "agent.instructions", "must be at most 256 KiB"
    )
    check.require(
        agent.double_texting in pb.DoubleTexting.values(),
        "agent.double_texting",
        "must be a value of the enum",
    )
    if agent.HasField("max_output_tokens"):
        check.between("agent.max_output_tokens", agent.max_output_tokens, 1, _MAX_TOKENS)
    _check_sampling(check, agent.sampling)
    _check_reasoning(check, agent.reasoning)
    memory = _memory_from(check, agent.memory)
    budgets = budgets_from(check, "agent.budgets", agent.budgets) if agent.HasField("budgets") else None
    tools = _tools_from(check, agent.tools)
    check.done()
    _refuse_unbuilt(agent)
    return AgentSpec(
        name=agent.name,
        model=agent.model,
        instructions=agent.instructions,
        description=agent.description,
        memory=memory,
        has_memory=agent.HasField("memory"),
        budgets=budgets,
        double_texting=_DOUBLE_TEXTING.get(agent.double_texting),
        sampling=agent.sampling.SerializeToString(deterministic=True),
        reasoning=agent.reasoning.SerializeToString(deterministic=True),
        max_output_tokens=agent.max_output_tokens if agent.HasField("max_output_tokens") else None,
        tools=tools,
    )


def _refuse_unbuilt(agent: pb.Agent) -> None:
    refuse("agent.tools.client_side", any(tool.client_side for tool in agent.tools))
    refuse("agent.tools.needs_approval", any(tool.needs_approval for tool in agent.tools))
    refuse("agent.handoffs", bool(agent.handoffs))
    refuse("agent.approval", agent.HasField("approval"))
    refuse("agent.memory.extract", agent.memory.extract)


def _tools_from(check: Violations, tools: Sequence[pb.AgentTool]) -> tuple[AgentTool, ...]:
    if not check.count("agent.tools", tools, at_most=_MAX_TOOLS):
        return ()
    names: set[str] = set()
    for place, tool in enumerate(tools):
        where = f"agent.tools[{place}]"
        check_tool_name(check, f"{where}.name", tool.name, names)
        known = tool.when_no_worker in pb.WhenNoWorker.values()
        check.require(known, f"{where}.when_no_worker", "must be a value of the enum")
        check.between(f"{where}.max_concurrency", tool.max_concurrency, 0, 64)
    return tuple(
        AgentTool(
            name=tool.name,
            when_no_worker=_WHEN_NO_WORKER.get(tool.when_no_worker),
            timeout=time_of(check, f"agent.tools[{place}].timeout", tool, "timeout"),
            max_concurrency=tool.max_concurrency,
        )
        for place, tool in enumerate(tools)
    )


def _memory_from(check: Violations, policy: pb.MemoryPolicy) -> MemoryPolicy:
    where = "agent.memory"
    check.id(f"{where}.space", policy.space, optional=True)
    check.between(f"{where}.recall_limit", policy.recall_limit, 0, 200)
    check.between(f"{where}.window_tokens", policy.window_tokens, 0, _MAX_TOKENS)
    check.between(f"{where}.recall_tokens", policy.recall_tokens, 0, 200_000)
    scope = _RECALL_SCOPES.get(policy.recall_scope)
    check.require(scope is not None, f"{where}.recall_scope", "must be a value of the enum")
    return MemoryPolicy(
        space=policy.space or _DEFAULTS.space,
        recall_limit=policy.recall_limit if policy.HasField("recall_limit") else _DEFAULTS.recall_limit,
        recall_scope=scope or RecallScope.SUBJECT,
        window_tokens=policy.window_tokens or _DEFAULTS.window_tokens,
        recall_tokens=policy.recall_tokens or _DEFAULTS.recall_tokens,
        do_not_store=policy.do_not_store,
        summarize=policy.summarize,
    )


def budgets_from(check: Violations, where: str, budgets: pb.Budgets) -> Budgets:
    """Checked budgets."""
    check.between(f"{where}.max_model_steps", budgets.max_model_steps, 0, 1_000)
    check.between(f"{where}.max_tool_calls", budgets.max_tool_calls, 0, 10_000)
    check.require(budgets.max_tokens >= 0, f"{where}.max_tokens", "must not be negative")
    check.require(budgets.max_cost_micro_usd >= 0, f"{where}.max_cost_micro_usd", "must not be negative")
    return Budgets(
        max_model_steps=budgets.max_model_steps,
        max_tool_calls=budgets.max_tool_calls,
        max_wall_time=time_of(check, f"{where}.max_wall_time", budgets, "max_wall_time"),
        max_tokens=budgets.max_tokens,
        max_cost_micro_usd=budgets.max_cost_micro_usd,
    )


def _check_sampling(check: Violations, sampling: request_pb2.Sampling) -> None:
    for field, least, most in _SAMPLING:
        if sampling.HasField(field):  # type: ignore[arg-type]
            check.between(f"agent.sampling.{field}", getattr(sampling, field), least, most)


def _check_reasoning(check: Violations, reasoning: request_pb2.ReasoningOptions) -> None:
    check.require(
        reasoning.effort in request_pb2.ReasoningEffort.values(),
        "agent.reasoning.effort",
        "must be a value of the enum",
    )
    if reasoning.HasField("budget_tokens"):
        check.between("agent.reasoning.budget_tokens", reasoning.budget_tokens, 0, _MAX_TOKENS)


def agent_to(agent: Agent) -> pb.Agent:
    """The agent as stored; defaults that were left out of a memory policy are filled in."""
    spec = agent.spec
    message = pb.Agent(
        name=spec.name,
        model=spec.model,
        instructions=spec.instructions,
        description=spec.description,
        double_texting=next(
            (number for number, value in _DOUBLE_TEXTING.items() if value is spec.double_texting),
            pb.DOUBLE_TEXTING_UNSPECIFIED,
        ),
        max_output_tokens=spec.max_output_tokens,
        tools=map(_tool_to, spec.tools),
        version=agent.version,
        created_at=timestamp(agent.created_at),
    )
    if spec.has_memory:
        message.memory.CopyFrom(_memory_to(spec.memory))
    if spec.budgets is not None:
        message.budgets.CopyFrom(_budgets_to(spec.budgets))
    if spec.sampling:
        message.sampling.ParseFromString(spec.sampling)
    if spec.reasoning:
        message.reasoning.ParseFromString(spec.reasoning)
    return message


def _memory_to(policy: MemoryPolicy) -> pb.MemoryPolicy:
    scope = {value: number for number, value in _RECALL_SCOPES.items() if number}[policy.recall_scope]
    return pb.MemoryPolicy(
        space=policy.space,
        recall_limit=policy.recall_limit,
        recall_scope=scope,
        window_tokens=policy.window_tokens,
        recall_tokens=policy.recall_tokens,
        do_not_store=policy.do_not_store,
        summarize=policy.summarize,
    )


def _budgets_to(budgets: Budgets) -> pb.Budgets:
    return pb.Budgets(
        max_model_steps=budgets.max_model_steps,
        max_tool_calls=budgets.max_tool_calls,
        max_wall_time=duration(budgets.max_wall_time) if budgets.max_wall_time is not None else None,
        max_tokens=budgets.max_tokens,
        max_cost_micro_usd=budgets.max_cost_micro_usd,
    )


def _tool_to(tool: AgentTool) -> pb.AgentTool:
    return pb.AgentTool(
        name=tool.name,
        when_no_worker=next(
            (number for number, value in _WHEN_NO_WORKER.items() if value is tool.when_no_worker),
            pb.WHEN_NO_WORKER_UNSPECIFIED,
        ),
        timeout=duration(tool.timeout) if tool.timeout is not None else None,
        max_concurrency=tool.max_concurrency,
    )
