"""Agents and budgets: decode, check, encode."""

from collections.abc import Sequence
from datetime import timedelta

from janus_api.inference.v1 import request_pb2
from janus_api.orchestration.v1 import agent_pb2 as pb
from janus_kit.validate import Violations
from janus_orchestration.agent_tools import ASK, HANDOFF
from janus_orchestration.builtin_tools import PREFIXES
from janus_orchestration.model import (
    Agent,
    AgentSpec,
    AgentTool,
    ApprovalPolicy,
    Budgets,
    DoubleTexting,
    MemoryPolicy,
    RecallScope,
    Verdict,
    WhenNoWorker,
)
from janus_orchestration.wire.content import duration, time_of, timestamp
from janus_orchestration.wire.tools import check_description, check_tool_name

_MAX_INSTRUCTIONS = 256 * 1024
_MAX_TOKENS = 1_000_000
_MAX_TOOLS = 128
_MAX_OTHERS = 32
_MIN_CONSENT, _MIN_WAIT, _MAX_WAIT = timedelta(seconds=1), timedelta(milliseconds=10), timedelta(days=90)
# A tool that nobody runs: time for one call is time for people.
_ASKS = "user.ask"
_DEFAULTS = MemoryPolicy()

_DOUBLE_TEXTING = {
    pb.DOUBLE_TEXTING_ENQUEUE: DoubleTexting.ENQUEUE,
    pb.DOUBLE_TEXTING_REJECT: DoubleTexting.REJECT,
    pb.DOUBLE_TEXTING_INTERRUPT: DoubleTexting.INTERRUPT,
    pb.DOUBLE_TEXTING_ROLLBACK: DoubleTexting.ROLLBACK,
}
_VERDICTS = {
    pb.APPROVAL_DECISION_APPROVED: Verdict.APPROVED,
    pb.APPROVAL_DECISION_DECLINED: Verdict.DECLINED,
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
    """A checked agent. Raises InvalidArgument."""
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
    approval = _approval_from(check, agent) if agent.HasField("approval") else None
    _check_others(check, agent.name, "agent.handoffs", agent.handoffs)
    _check_others(check, agent.name, "agent.sub_agents", agent.sub_agents)
    check.done()
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
        approval=approval,
        handoffs=tuple(agent.handoffs),
        sub_agents=tuple(agent.sub_agents),
    )


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
        _check_client_side(check, where, tool)
    return tuple(
        AgentTool(
            name=tool.name,
            when_no_worker=_WHEN_NO_WORKER.get(tool.when_no_worker),
            timeout=_timeout(check, f"agent.tools[{place}].timeout", tool),
            max_concurrency=tool.max_concurrency,
            client_side=tool.client_side,
            description=tool.description,
            parameters_schema_json=tool.parameters_schema_json,
            needs_approval=tool.needs_approval,
        )
        for place, tool in enumerate(tools)
    )


def _check_client_side(check: Violations, where: str, tool: pb.AgentTool) -> None:
    if tool.client_side:
        check.require(not tool.name.startswith(PREFIXES), f"{where}.name", "must not be one of Janus's own")
        check_description(check, where, tool.description, tool.parameters_schema_json)
        return
    check.require(not tool.description, f"{where}.description", "must be empty unless client_side")
    is_empty = not tool.parameters_schema_json
    check.require(is_empty, f"{where}.parameters_schema_json", "must be empty unless client_side")


def _check_others(check: Violations, own: str, where: str, names: Sequence[str]) -> None:
    """Agents that may be brought in."""
    if not check.count(where, names, at_most=_MAX_OTHERS):
        return
    for place, name in enumerate(names):
        check.id(f"{where}[{place}]", name)
        check.require(name != own, f"{where}[{place}]", "must not be the agent itself")
        check.require(name not in names[:place], f"{where}[{place}]", "must be unique")


def _approval_from(check: Violations, agent: pb.Agent) -> ApprovalPolicy:
    policy, where = agent.approval, "agent.approval"
    if check.count(f"{where}.tools", policy.tools, at_most=_MAX_TOOLS):
        names = {tool.name for tool in agent.tools}
        names |= {HANDOFF} if agent.handoffs else set()
        names |= {ASK} if agent.sub_agents else set()
        for place, name in enumerate(policy.tools):
            check.require(name in names, f"{where}.tools[{place}]", "must name a tool of the agent")
    known = policy.on_expiry in pb.ApprovalDecision.values()
    check.require(known, f"{where}.on_expiry", "must be a value of the enum")
    return ApprovalPolicy(
        tuple(policy.tools),
        time_of(check, f"{where}.expires_after", policy, "expires_after", (_MIN_CONSENT, _MAX_WAIT, "1 s to 90 days")),
        _VERDICTS.get(policy.on_expiry),
    )


def _timeout(check: Violations, where: str, tool: pb.AgentTool) -> timedelta | None:
    if tool.client_side or tool.name == _ASKS:
        return time_of(check, where, tool, "timeout", (_MIN_WAIT, _MAX_WAIT, "10 ms to 90 days"))
    return time_of(check, where, tool, "timeout")


def _memory_from(check: Violations, policy: pb.MemoryPolicy) -> MemoryPolicy:
    where = "agent.memory"
    may_extract = not (policy.extract and policy.do_not_store)
    check.require(may_extract, f"{where}.extract", "must not be set together with do_not_store")
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
        extract=policy.extract,
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
        handoffs=spec.handoffs,
        sub_agents=spec.sub_agents,
        version=agent.version,
        created_at=timestamp(agent.created_at),
    )
    if spec.has_memory:
        message.memory.CopyFrom(_memory_to(spec.memory))
    if spec.budgets is not None:
        message.budgets.CopyFrom(_budgets_to(spec.budgets))
    if spec.approval is not None:
        message.approval.CopyFrom(_approval_to(spec.approval))
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
        extract=policy.extract,
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


def _approval_to(policy: ApprovalPolicy) -> pb.ApprovalPolicy:
    return pb.ApprovalPolicy(
        tools=policy.tools,
        expires_after=duration(policy.expires_after) if policy.expires_after is not None else None,
        on_expiry=next(
            (number for number, value in _VERDICTS.items() if value is policy.on_expiry),
            pb.APPROVAL_DECISION_UNSPECIFIED,
        ),
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
        client_side=tool.client_side,
        description=tool.description,
        parameters_schema_json=tool.parameters_schema_json,
        needs_approval=tool.needs_approval,
    )
