"""Short ways to a prompt and to a generation over providers, with the real stores behind it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr
from tests.fakes.patience import patient_postgres
from tests.fakes.tasks import running_tasks

from janus_inference.adapters.postgres_requests import PostgresRequests
from janus_inference.adapters.postgres_usage import PostgresUsage
from janus_inference.adapters.redis_answers import RedisAnswers
from janus_inference.adapters.redis_limits import RedisLimits
from janus_inference.adapters.redis_replay import RedisReplay
from janus_inference.asking import Desk, Underway
from janus_inference.breakers import BreakerRules, Breakers
from janus_inference.caching import AnswerCache
from janus_inference.deadlines import TimeLimits
from janus_inference.events import Event
from janus_inference.generation import Generation
from janus_inference.ledger import Ledger
from janus_inference.limits import Holds, Limiter
from janus_inference.model import Caller, Message, Prompt, Role, Text
from janus_inference.ports import Provider
from janus_inference.prices import PriceTable
from janus_inference.requests import Requests
from janus_inference.resuming import Resumables
from janus_inference.retry_budget import RetryBudget
from janus_inference.routing import Alias, ProviderModels, Routes
from janus_inference.settings import InferenceSettings, RoutingSettings
from janus_inference.standing import Standings
from janus_inference.stored import ProtobufEvents
from janus_inference.telemetry import Naming
from janus_kit.clock import SystemClock
from janus_kit.migrations import migrate
from janus_kit.postgres import Database, database
from janus_kit.redis import RedisClient
from janus_kit.redis import redis as redis_client
from janus_kit.settings import RedisSettings

NAME = "upstream"
CALLER = Caller("tenant", "tester")
# Failures are told at once, unless a test is about trying again.
ONCE = RoutingSettings(max_attempts=1)


@dataclass(frozen=True)
class Stores:
    """The stores of one test and what works on them."""

    pool: Database
    redis: RedisClient
    ledger: Ledger
    requests: Requests
    holds: Holds
    cache: AnswerCache
    resumables: Resumables

    def desk(
        self,
        providers: Mapping[str, Provider] | None = None,
        limits: TimeLimits | None = None,
        routing: RoutingSettings = ONCE,
        settings: InferenceSettings | None = None,
    ) -> Desk:
        """All that asking works with."""
        made = settings or InferenceSettings()
        prices, clock = PriceTable.of_settings(made), SystemClock()
        rules = BreakerRules(routing.breaker_failures, routing.breaker_open_s, routing.breaker_open_most_s)
        return Desk(
            providers=providers or {},
            time_limits=limits or TimeLimits(),
            routing=routing,
            limiter=Limiter(self.holds, made.limits),
            prices=prices,
            ledger=self.ledger,
            breakers=Breakers(clock, rules),
            budget=RetryBudget(clock, ratio=routing.retry_budget_ratio, least=routing.retry_budget_least),
            standings=Standings(clock),
            clock=clock,
            underway=Underway(),
            naming=Naming.of_settings(made, prices),
        )

    def generation(
        self,
        providers: Provider | Mapping[str, Provider],
        limits: TimeLimits | None = None,
        routing: RoutingSettings = ONCE,
        aliases: Mapping[str, Alias] | None = None,
        **settings: Any,
    ) -> Generation:
        """A generation that can ask any model of these providers; one alone is called ``upstream``."""
        named = dict(providers) if isinstance(providers, Mapping) else {NAME: providers}
        made = InferenceSettings.model_validate(settings)
        desk = self.desk(named, limits, routing, made)
        open_ended = ProviderModels(frozenset(), frozenset(), True)
        routes = Routes(dict.fromkeys(named, open_ended), aliases or {}, f"{next(iter(named))}/fake")
        return Generation(desk, routes, self.requests, self.cache, self.resumables, ProtobufEvents(), made.linger_s)


@asynccontextmanager
async def real_stores(postgres_url: str, redis_url: str) -> AsyncIterator[Stores]:
    """Stores on a database that is brought up to date."""
    postgres, redis = patient_postgres(postgres_url), RedisSettings(url=SecretStr(redis_url))
    await migrate(postgres, ["janus_inference"])
    codec = ProtobufEvents()
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(database(postgres, application="test"))
        client = await stack.enter_async_context(redis_client(redis))
        ledger = Ledger(PostgresUsage(pool), wait_s=5)
        requests = Requests(PostgresRequests(pool), codec)
        holds = Holds(RedisLimits(client))
        resumables = Resumables(RedisReplay(client, codec, keep_s=60))
        await stack.enter_async_context(running_tasks(ledger.run, requests.run, holds.run))
        stack.push_async_callback(ledger.drain)
        stack.push_async_callback(requests.drain)
        stack.push_async_callback(holds.drain)
        stack.push_async_callback(resumables.close)
        cache = AnswerCache(RedisAnswers(client), codec, most_bytes=262_144)
        yield Stores(pool, client, ledger, requests, holds, cache, resumables)


def prompt(text: str = "hello", **fields: Any) -> Prompt:
    """One user message, for ``upstream/fake`` unless said otherwise."""
    fields.setdefault("model", f"{NAME}/fake")
    return Prompt((Message(Role.USER, (Text(text),)),), **fields)


async def events_of(using: Generation, asked: Prompt) -> list[Event]:
    """All events, with their numbers checked."""
    numbered = [each async for each in using.run(asked, CALLER)]
    assert [each.sequence for each in numbered] == list(range(1, len(numbered) + 1))
    return [each.event for each in numbered]
