"""The use case: how many tokens a prompt has, without asking for its answer."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from janus_inference.accounting import estimated_prompt_tokens
from janus_inference.deadlines import TimeLimits
from janus_inference.model import CachePolicy, Prompt, Routing, Timeouts
from janus_inference.ports import Ask, TokenCounter
from janus_inference.provider_errors import ProviderFailure, timed_out
from janus_inference.routing import Routes, Target
from janus_inference.stopwatch import Unwatched
from janus_inference.telemetry import PLAIN, Attempt, Naming
from janus_inference.validation import validate


@dataclass(frozen=True, slots=True)
class Counted:
    """Tokens of a whole prompt; ``exact`` when the provider counted, otherwise they are guessed from its size."""

    tokens: int
    exact: bool


class Counting:
    """Counts tokens, at the provider where it can."""

    def __init__(
        self,
        counters: Mapping[str, TokenCounter],
        routes: Routes,
        limits: TimeLimits,
        naming: Naming = PLAIN,
    ) -> None:
        self._counters = counters
        self._routes = routes
        self._limits = limits
        self._naming = naming

    async def count(self, prompt: Prompt, *, remaining: float | None = None) -> Counted:
        """The tokens of a prompt for the first target of its model.

        ``remaining`` seconds are left to the call. A provider that counts and
        fails is an error, never a silent estimate. Raises JanusError.
        """
        # What says how, when and for whom to ask is not counted, so it cannot be wrong either.
        prompt = replace(
            prompt,
            timeouts=Timeouts(),
            routing=Routing(),
            cache=CachePolicy(),
            labels={},
            resumable=False,
            linger=None,
            request_id="",
        )
        validate(prompt)
        target = self._routes.route(prompt.model).targets[0]
        counter = self._counters.get(target.provider)
        if counter is None:
            return Counted(estimated_prompt_tokens(prompt), exact=False)
        return Counted(await self._asked(counter, target, prompt, remaining), exact=True)

    async def _asked(self, counter: TokenCounter, target: Target, prompt: Prompt, remaining: float | None) -> int:
        limits = self._limits
        options = json.loads(prompt.provider_options_json) if prompt.provider_options_json else {}
        ask = Ask(prompt, target.model, Unwatched(), limits.connect, options)
        # The whole answer is one event, so that its limit is the first event's.
        legs = [(limits.first_event, "first_event"), (limits.total, "total")]
        seconds, leg = min(legs if remaining is None else [*legs, (remaining, "call")])
        with Attempt("count_tokens", target.provider, target.model, naming=self._naming) as attempt:
            try:
                async with asyncio.timeout(seconds) as timeout:
                    tokens = await counter.count_tokens(ask)
            except TimeoutError:
                if not timeout.expired():
                    raise
                failure = timed_out(target.provider, leg, seconds)
            except ProviderFailure as raised:
                failure = raised
            except asyncio.CancelledError:
                attempt.cancelling()
                raise
            else:
                attempt.succeeded()
                return tokens
            attempt.failed(failure.outcome)
            raise failure.error from None
