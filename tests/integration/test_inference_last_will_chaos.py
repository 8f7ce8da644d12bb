"""What a call used whose process was killed, as the others find it once its lease has run out."""

from __future__ import annotations

import asyncio
import json

from tests.fakes.inference_processes import events_of, inference_processes
from tests.fakes.providers.inference_service import prompt
from tests.fakes.usage_records import eventually, rows
from tests.integration.test_inference_last_will import LEFT, USED

from janus_api.inference.v1 import request_pb2


async def test_what_a_plain_call_of_a_killed_process_used_is_on_record(postgres_url: str, redis_url: str) -> None:
    async with inference_processes(2, postgres_url, redis_url) as ((first, _), _):
        asked = request_pb2.Prompt(
            messages=prompt("words").messages, model="compatible/fake;tokens=2000;pace=20", labels={"team": "a"}
        )
        call = first.generate(asked)
        (started, *_) = await events_of(call, 3)
        generation = started.started.generation_id

        async def is_left() -> bool:
            return bool(await rows(postgres_url, LEFT, json.dumps({"generation_id": generation})))

        async def is_on_record() -> bool:
            return bool(await rows(postgres_url, USED, generation))

        async with asyncio.timeout(60):
            await eventually(is_left)
            assert not await is_on_record()
            first.kill()
            await eventually(is_on_record)
        (row,) = await rows(postgres_url, USED, generation)
        assert (row["outcome"], row["estimated"], row["labels"]) == ("owner_gone", True, '{"team": "a"}')
        assert row["output_tokens"] > 0
