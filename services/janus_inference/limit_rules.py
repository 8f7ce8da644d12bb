"""Which limits apply to a call, and what each of them counts for it."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from janus_inference.model import Caller
from janus_inference.ports import LimitCounter
from janus_inference.settings import LimitSettings
from janus_kit.errors import FailedPrecondition

Dimension = Literal["requests", "tokens", "concurrent", "spend"]

_MICRO = 1_000_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a call will probably use; the cost is in millionths of a US dollar, None when its price is unknown."""

    input_tokens: int
    output_tokens: int
    cost_micro_usd: int | None


class Rule:
    """One limit, ready to be compared with calls."""

    def __init__(self, limit: LimitSettings) -> None:
        self._limit = limit
        self._tenants, self._subjects, self._models = map(_pattern, (limit.tenants, limit.subjects, limit.models))

    def counters(self, caller: Caller, target: str) -> list[LimitCounter]:
        """What it counts for such a call; nothing when it does not apply."""
        pairs = ((self._tenants, caller.tenant), (self._subjects, caller.subject), (self._models, target))
        if not all(pattern is None or pattern.fullmatch(text) for pattern, text in pairs):
            return []
        limit, part = self._limit, self._part(caller, target)
        spend = max(1, round(limit.spend_usd * _MICRO)) if limit.spend_usd is not None else None
        found: tuple[tuple[Dimension, str, int | None], ...] = (
            ("requests", "requests", limit.requests_per_minute),
            ("tokens", "tokens", limit.tokens_per_minute),
            ("concurrent", "concurrent", limit.concurrent),
            ("spend", f"spend-{limit.spend_window}", spend),
        )
        return [
            LimitCounter(f"{limit.name}:{kind}{part}", limit.name, dimension, most, limit.spend_window)
            for dimension, kind, most in found
            if most is not None
        ]

    def _part(self, caller: Caller, target: str) -> str:
        """Subjects and models may be long and hold anything: a digest stands for them."""
        parts = [text for name, text in (("subject", caller.subject), ("model", target)) if name in self._limit.per]
        if not parts:
            return ""
        whole = json.dumps([sorted({*self._limit.per}), parts])
        digest = hashlib.blake2b(whole.encode(), digest_size=12)
        return f":{digest.hexdigest()}"


def _pattern(names: Sequence[str]) -> re.Pattern[str] | None:
    """Matches any of the names, `*` standing for any characters; None for no names at all."""
    if not names:
        return None
    return re.compile("|".join(".*".join(map(re.escape, name.split("*"))) for name in names), re.DOTALL)


def amount(counter: LimitCounter, target: str, estimate: Estimate) -> int:
    """What to reserve. Raises FailedPrecondition when money is limited and the price is unknown."""
    if counter.dimension == "tokens":
        return estimate.input_tokens + estimate.output_tokens
    if counter.dimension != "spend":
        return 1
    if estimate.cost_micro_usd is None:
        raise FailedPrecondition(
            "PRICE_UNKNOWN",
            f"limit '{counter.rule}' is in US dollars, and the price of '{target}' is unknown",
            {"model": target, "limit": counter.rule},
            subject=target,
        )
    return estimate.cost_micro_usd


def words(limit: LimitSettings, counter: LimitCounter) -> str:
    """What a counter allows, for people."""
    match counter.dimension:
        case "requests":
            return f"{counter.limit} requests a minute"
        case "tokens":
            return f"{counter.limit} tokens a minute"
        case "concurrent":
            return f"{counter.limit} calls at the same time"
    return f"{limit.spend_usd:g} US dollars a calendar {limit.spend_window} (UTC)"
