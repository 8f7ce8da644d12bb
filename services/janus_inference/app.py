"""The composition root of inference: settings in, ``Mount`` out."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from janus_api.inference.v1 import inference_service_pb2_grpc as rpc
from janus_inference import telemetry
from janus_inference.adapters.postgres_requests import PostgresRequests
from janus_inference.adapters.postgres_usage import PostgresUsage
from janus_inference.adapters.redis_answers import RedisAnswers
from janus_inference.adapters.redis_limits import RedisLimits
from janus_inference.adapters.redis_replay import RedisReplay
from janus_inference.asking import Underway
from janus_inference.breakers import BreakerRules, Breakers
from janus_inference.build import Process, Upstream, build, is_usable
from janus_inference.caching import AnswerCache
from janus_inference.engine import Engine, Shared
from janus_inference.inference import Inference
from janus_inference.last_will import LastWill
from janus_inference.ledger import Ledger
from janus_inference.limits import Holds
from janus_inference.provider_errors import not_configured
from janus_inference.requests import Requests
from janus_inference.resuming import Resumables, Settling, Sweeper
from janus_inference.retry_budget import RetryBudget
from janus_inference.servicer import SERVICE, InferenceServicer
from janus_inference.settings import InferenceSettings, ProviderSettings
from janus_inference.standing import Standings
from janus_inference.stored import ProtobufEvents
from janus_inference.usage_report import UsageReport
from janus_kit.clock import Clock, SystemClock
from janus_kit.ids import new_id
from janus_kit.mount import Mount, Part, Parts
from janus_kit.postgres import Database, database
from janus_kit.redis import RedisClient, ping
from janus_kit.redis import redis as redis_client
from janus_kit.reload import ReloadSource
from janus_kit.settings import PostgresSettings, RedisSettings


@asynccontextmanager
async def mount(
    settings: InferenceSettings,
    *,
    postgres: PostgresSettings,
    redis: RedisSettings,
    clock: Clock | None = None,
    reload: ReloadSource[InferenceSettings] | None = None,
) -> AsyncIterator[Mount]:
    """Inference, ready to be served. Needs its migrations applied; waits for nothing.

    Leaving the block closes the providers' connections.
    """
    clock = clock or SystemClock()
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(database(postgres, application="janus-inference"))
        client = await stack.enter_async_context(redis_client(redis, application="janus-inference"))
        # Reads that wait have a client of their own, so that they never take the writers' connections.
        waiting = await stack.enter_async_context(redis_client(redis, application="janus-inference-replay"))
        usage, codec = PostgresUsage(pool), ProtobufEvents()
        ledger = Ledger(usage, wait_s=settings.usage_wait_s)
        requests = Requests(PostgresRequests(pool), codec)
        holds = Holds(RedisLimits(client))
        replay = RedisReplay(client, codec, keep_s=settings.replay_s, readers=waiting)
        settling = Settling(
            replay, ledger.record, lambda *used: engine.current.generation.desk.prices.cost(*used), clock
        )
        resumables = Resumables(replay, settling)
        sweeper = Sweeper(replay, settling, resumables.owned)
        process = Process(
            clock=clock,
            upstreams=Shared(Upstream.close),
            standings=Standings(clock),
            breakers=Breakers(clock, BreakerRules()),
            budget=RetryBudget(clock, ratio=0.0, least=0),
            holds=holds,
            ledger=ledger,
            requests=requests,
            cache=AnswerCache(RedisAnswers(client), codec, most_bytes=settings.cache_max_bytes, clock=clock),
            resumables=resumables,
            codec=codec,
            underway=Underway(),
        )
        will = LastWill(usage, process.underway.records, new_id("inf"))
        engine = await Engine.started(partial(build, process), settings)
        stack.enter_context(
            telemetry.shown(lambda: engine.current.settings.all_providers(), process.breakers, process.budget)
        )
        # At the end, in reverse: what calls leave behind is written before the stores are let go.
        stack.push_async_callback(will.withdraw)
        stack.push_async_callback(ledger.drain)
        stack.push_async_callback(requests.drain)
        stack.push_async_callback(holds.drain)
        stack.push_async_callback(engine.close)
        stack.push_async_callback(replay.close)
        stack.push_async_callback(resumables.close)
        if reload is not None:
            reload.on_change(engine.apply, fixed=("usage_wait_s", "replay_s", "cache_max_bytes"))

        def conclude() -> None:
            resumables.conclude()
            process.underway.stop()

        servicer = InferenceServicer(engine, resumables, UsageReport(usage))
        yield Mount(
            name="inference",
            register=lambda server: rpc.add_InferenceServiceServicer_to_server(servicer, server),
            services=(SERVICE,),
            parts=Parts(lambda: [*_stores(pool, client), *_providers(engine.current.settings, process.standings)]),
            background=(
                ("inference-ledger", ledger.run),
                ("inference-requests", requests.run),
                ("inference-limits", holds.run),
                ("inference-sweeper", sweeper.run),
                ("inference-last-will", will.run),
                ("inference-warm", partial(_warm, engine)),
            ),
            drain=resumables.drain,
            conclude=conclude,
        )


def _stores(pool: Database, client: RedisClient) -> list[Part]:
    return [
        Part("postgres", True, pool.ping, "nothing is answered, since nothing can be put on record"),
        Part(
            "redis",
            False,
            partial(ping, client),
            "resumable generations are refused, limits are as configured, nothing is cached",
        ),
    ]


def _providers(settings: InferenceSettings, standings: Standings) -> Iterator[Part]:
    return (_provider(name, each, standings) for name, each in settings.all_providers().items())


def _provider(name: str, provider: ProviderSettings, standings: Standings) -> Part:
    """Health of a provider: its configuration and its last call, never a call that costs money."""

    async def check() -> None:
        if not is_usable(provider):
            raise not_configured(name).error
        if (problem := standings.problem(name)) is not None:
            raise problem.error

    return Part(
        name=f"provider:{name}",
        required=False,
        check=check,
        when_away=f"models of '{name}' fail; the others answer",
    )


async def _warm(engine: Engine[InferenceSettings, Inference]) -> None:
    """Do now what the first call would otherwise wait for."""
    await engine.current.warm()
