"""How much to think, as Messages says it: by a number of tokens, or by an effort.

Models before 4.6 take a number of tokens. Later ones decide themselves how much
to think and take an effort; the latest take no number any more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from janus_inference.dialects.capabilities import unsupported
from janus_inference.dialects.efforts import FIELD, effort_word, refuse_quiet
from janus_inference.families import Family, family
from janus_inference.model import Effort, Prompt, ReasoningOptions

# Thinking tokens for each coarse setting.
_BUDGET = {Effort.MINIMAL: 1024, Effort.LOW: 2048, Effort.MEDIUM: 8192, Effort.HIGH: 16_384}
_NO_LIMIT = 1_000_000
_LEAST_BUDGET = 1024
_BUDGET_FIELD = "prompt.reasoning.budget_tokens"


@dataclass(frozen=True, slots=True)
class Thinking:
    """``said`` is the request's `thinking`, None for the model's default; ``budget`` counts as output."""

    said: Mapping[str, Any] | None = None
    effort: str | None = None
    budget: int = 0


def thinking_of(prompt: Prompt, model: str) -> Thinking:
    """What the prompt asks for. Raises InvalidArgument for what the model does not do."""
    asked, known = prompt.reasoning, family(model)
    if asked is None:
        return Thinking()
    if asked.budget_tokens is not None:
        return _by_budget(asked.budget_tokens, prompt, model, known)
    if asked.effort is None:
        # A summary of thinking that was not asked for; the newest think all the same.
        shows = asked.summary and known.adaptive and not known.budgets
        return Thinking(said=_adaptive(asked)) if shows else Thinking()
    if asked.effort is Effort.NONE:
        return _none(model, known, FIELD)
    if known.adaptive:
        return Thinking(_adaptive(asked), effort_word(asked.effort, model, known.efforts))
    if known.efforts == ():
        effort_word(asked.effort, model, known.efforts)
    # The budget is ours, so half is left for the answer, where that is enough to think with.
    most = min(prompt.max_output_tokens or _NO_LIMIT, known.max_output or _NO_LIMIT)
    if most > _LEAST_BUDGET:
        return _by_budget(max(_LEAST_BUDGET, min(_BUDGET[asked.effort], most // 2)), prompt, model, known)
    if asked.effort is Effort.MINIMAL:
        return Thinking()
    rule = f"this model thinks with {_LEAST_BUDGET} tokens or more, which max_output_tokens must leave room for"
    raise unsupported(model, "REASONING", FIELD, rule)


def _adaptive(asked: ReasoningOptions) -> dict[str, Any]:
    return {"type": "adaptive", "display": "summarized"} if asked.summary else {"type": "adaptive"}


def _none(model: str, known: Family, field: str) -> Thinking:
    refuse_quiet(model, known, field)
    return Thinking({"type": "disabled"})


def _by_budget(budget: int, prompt: Prompt, model: str, known: Family) -> Thinking:
    if budget == 0:
        return _none(model, known, _BUDGET_FIELD)
    if not known.budgets:
        rule = "this model takes an effort, not a number of tokens"
        raise unsupported(model, "REASONING", _BUDGET_FIELD, rule)
    if budget < _LEAST_BUDGET:
        rule = f"this provider takes 0 or at least {_LEAST_BUDGET}"
        raise unsupported(model, "REASONING", _BUDGET_FIELD, rule)
    if prompt.max_output_tokens is not None and budget >= prompt.max_output_tokens:
        rule = "must be below max_output_tokens, which includes the reasoning"
        raise unsupported(model, "REASONING", _BUDGET_FIELD, rule)
    if known.max_output is not None and budget >= known.max_output:
        rule = f"must be below {known.max_output}, the most that this model writes, which includes the reasoning"
        raise unsupported(model, "REASONING", _BUDGET_FIELD, rule)
    return Thinking({"type": "enabled", "budget_tokens": budget}, budget=budget)
