"""Replicas killed at random times while clients stream, are cut and resume; then the histories are compared."""

from __future__ import annotations

import asyncio
import os
import random

import grpc
from tests.fakes.inference_processes import Event, InferenceProcess, inference_processes
from tests.fakes.providers.inference_service import prompt

SEED = int(os.environ.get("CHAOS_SEED", "11"))
GENERATIONS = int(os.environ.get("CHAOS_GENERATIONS", "16"))
KILLS = int(os.environ.get("CHAOS_KILLS", "2"))
_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def has_ended(seen: list[Event]) -> bool:
    return bool(seen) and seen[-1].WhichOneof("event") in ("finished", "failed")


async def read_on(replicas: list[InferenceProcess], seen: list[Event], dice: random.Random, generation: str) -> None:
    """Read a generation to its end at whichever replica answers, letting go of the stream now and then."""
    model = f"compatible/fake;tokens={dice.randrange(20, 150)};pace=20"
    while not has_ended(seen):
        replica = dice.choice(replicas)
        if generation or seen:
            call = replica.resume(generation or seen[0].started.generation_id, len(seen))
        else:
            call = replica.generate(prompt(model=model, resumable=True))
        patience = dice.choice((3, 30, 1_000))
        try:
            while patience and (response := await call.read()) is not grpc.aio.EOF:
                seen.append(response.event)
                patience -= 1
        except grpc.aio.AioRpcError as error:
            if error.code() not in _AGAIN:
                raise
            await asyncio.sleep(0.1)
        finally:
            call.cancel()


async def one(replicas: list[InferenceProcess], dice: random.Random) -> list[list[Event]]:
    """A client and an onlooker of one generation; what each of them saw."""
    own: list[Event] = []
    onlooker: list[Event] = []
    async with asyncio.TaskGroup() as both:
        both.create_task(read_on(replicas, own, dice, ""))
        while not own:  # noqa: ASYNC110 - the client's list is what it has
            await asyncio.sleep(0.01)
        both.create_task(read_on(replicas, onlooker, random.Random(dice.random()), own[0].started.generation_id))
    return [own, onlooker]


async def test_whoever_is_killed_every_client_sees_one_and_the_same_stream(postgres_url, redis_url):
    dice = random.Random(SEED)
    async with inference_processes(2, postgres_url, redis_url) as (replicas, _), asyncio.timeout(120):
        clients = [asyncio.create_task(one(replicas, random.Random(dice.random()))) for _ in range(GENERATIONS)]
        for number in range(KILLS):
            await asyncio.sleep(dice.uniform(0.3, 1.0))
            replicas[number % 2].kill()
            await replicas[number % 2].start()
        histories = await asyncio.gather(*clients)
        ends = []
        for own, onlooker in histories:
            assert own == onlooker, f"seed {SEED}"
            assert [event.sequence for event in own] == list(range(1, len(own) + 1))
            kinds = [event.WhichOneof("event") for event in own]
            assert [kind for kind in kinds if kind in ("finished", "failed")] == [kinds[-1]]
            ends.append(kinds[-1])
            if kinds[-1] == "finished":
                words = "".join(event.text_delta.text for event in own).split(" ")
                assert words == [f"wörd{place}" for place in range(len(words))]
                assert own[-1].finished.usage.output_tokens == len(words)
    # Both have happened, or the test proves less than it says.
    assert set(ends) == {"finished", "failed"}, f"seed {SEED}"
