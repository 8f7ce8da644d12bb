"""Budgets of a run: what its journal says is used, what may be, and when to warn.

Pure: everything is counted from the steps, so that whoever takes a run over
counts the same. Time is not a count; see ``interrupt``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from janus_kit.errors import FailedPrecondition, JanusError, ResourceExhausted
from janus_orchestration.events import BudgetWarning
from janus_orchestration.model import Budgets, Step, StepKind, Usage
from janus_orchestration.state import CALLS

MODEL_STEPS = "model_steps"
TOOL_CALLS = "tool_calls"
TOKENS = "tokens"
COST = "cost_micro_usd"
WALL_TIME = "wall_time"

_DEFAULTS = {MODEL_STEPS: 16, TOOL_CALLS: 64}
WARN_AT = 0.8

Amounts = Mapping[str, int]
"""By budget: what is used, or the limit; a limit that is not there is none."""


def limits(*budgets: Budgets | None) -> Amounts:
    """The least of what the agent and the run allow, else the server's."""
    given = [
        {
            MODEL_STEPS: each.max_model_steps,
            TOOL_CALLS: each.max_tool_calls,
            TOKENS: each.max_tokens,
            COST: each.max_cost_micro_usd,
        }
        for each in budgets
        if each is not None
    ]
    set_limits = {
        name: [each[name] for each in given if each[name]] for name in (MODEL_STEPS, TOOL_CALLS, TOKENS, COST)
    }
    return _DEFAULTS | {name: min(found) for name, found in set_limits.items() if found}


def used(steps: Iterable[Step]) -> Amounts:
    """What these steps have used, those under way and agents that were asked included."""
    found = list(steps)
    usage = _sum(found) or Usage()
    return {
        MODEL_STEPS: sum(step.kind is StepKind.MODEL_CALL for step in found),
        TOOL_CALLS: sum(step.kind in CALLS for step in found),
        TOKENS: usage.input_uncached + usage.cache_read + usage.cache_write + usage.output,
        COST: usage.cost_micro_usd or 0,
    }


def total(steps: Iterable[Step]) -> Usage | None:
    """The sum over the model calls; None when none has said what it used."""
    return _sum(step for step in steps if step.kind is StepKind.MODEL_CALL)


def left(steps: Iterable[Step], most: Amounts) -> Budgets | None:
    """What a run that these steps bring in may use of what is limited over all: tokens and money."""
    if TOKENS not in most and COST not in most:
        return None
    amounts = used(steps)
    # At least 1: 0 is no limit.
    tokens, cost = (max(1, most[name] - amounts[name]) if name in most else 0 for name in (TOKENS, COST))
    return Budgets(max_tokens=tokens, max_cost_micro_usd=cost)


def of_attempts(lost: Usage | None, last: Usage | None) -> Usage | None:
    """What the attempts at one model call used. Of those that were lost no price is known: the last one's stands."""
    if lost is None or last is None:
        return lost or last
    both = _sum_of([lost, last])
    return replace(both, cost_micro_usd=last.cost_micro_usd, price_version=last.price_version)


def _sum(steps: Iterable[Step]) -> Usage | None:
    found = [step.usage for step in steps if step.usage is not None]
    return _sum_of(found) if found else None


def _sum_of(usages: Sequence[Usage]) -> Usage:
    """Of one or more. The cost of a sum is unknown when that of a part is; a sum is an estimate when a part is."""
    if len(usages) == 1:
        return usages[0]
    costs = [usage.cost_micro_usd for usage in usages if usage.cost_micro_usd is not None]
    is_known = len(costs) == len(usages)
    return Usage(
        input_uncached=sum(usage.input_uncached for usage in usages),
        cache_read=sum(usage.cache_read for usage in usages),
        cache_write=sum(usage.cache_write for usage in usages),
        output=sum(usage.output for usage in usages),
        reasoning=sum(usage.reasoning for usage in usages),
        cost_micro_usd=sum(costs) if is_known else None,
        price_version=usages[-1].price_version if is_known else "",
        source=max(usage.source for usage in usages),
    )


def warnings(before: Amounts, after: Amounts, most: Amounts) -> tuple[BudgetWarning, ...]:
    """Of the budgets that came to 80 % in between."""
    return tuple(
        BudgetWarning(name, after[name], limit)
        for name, limit in most.items()
        if before[name] < WARN_AT * limit <= after[name]
    )


def refusal(steps: Iterable[Step], most: Amounts) -> JanusError | None:
    """Why the newest of these steps may not be done; None when it may.

    A step that has begun counts: the last one allowed reaches its limit. Tokens
    and money are known only afterwards: what has reached its limit allows no
    more.
    """
    found = list(steps)
    amounts = used(found)
    if COST in most and any(step.usage is not None and step.usage.cost_micro_usd is None for step in found):
        model = next(step.summary for step in found if step.usage is not None and step.usage.cost_micro_usd is None)
        return FailedPrecondition(
            "PRICE_UNKNOWN",
            "the run has a budget of cost, and the price of its model is unknown",
            {"model": model, "limit": COST},
        )
    for name, limit in most.items():
        if amounts[name] > limit or (name in (TOKENS, COST) and amounts[name] == limit):
            return ResourceExhausted(
                "BUDGET_EXCEEDED",
                f"the run's budget of {name} is used up",
                {"budget": name, "limit": str(limit)},
            )
    return None
