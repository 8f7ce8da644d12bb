"""A worker with three tools: one that only looks, one that may be repeated, one that must not be.

pip install janus-mesh
JANUS_TARGET=127.0.0.1:50051 python worker.py
"""

import asyncio
import logging
import os
import random
from datetime import timedelta
from typing import Annotated

from pydantic import Field

from janus_worker import Call, ToolError, Worker

worker = Worker(os.environ.get("JANUS_TARGET", "127.0.0.1:50051"), tenant=os.environ.get("JANUS_TENANT", ""))

stock = {"tea": 3, "coffee": 5}
reserved: dict[str, str] = {}


@worker.tool(name="shop.stock", side_effect="read_only", timeout=timedelta(seconds=5))
async def in_stock(item: Annotated[str, Field(description="tea or coffee")]) -> int:
    """How many of an item are in stock."""
    if item not in stock:
        raise ToolError(f"we do not sell {item}")
    return stock[item]


@worker.tool(name="shop.reserve", side_effect="idempotent")
async def reserve(item: str, call: Call) -> str:
    """Puts one of an item aside."""
    # A second try has the same key, and so reserves nothing more.
    if call.idempotency_key not in reserved:
        if not stock.get(item):
            raise ToolError(f"there is no {item} left")
        stock[item] -= 1
        reserved[call.idempotency_key] = item
    return f"one {item} is put aside"


@worker.tool(name="shop.brew")
async def brew(item: str, call: Call) -> dict[str, str | int]:
    """Brews a cup. What is brewed cannot be unbrewed."""
    for step in range(1, 5):
        await asyncio.sleep(0.25)
        call.progress(step / 4, "brewing")
    return {"cup": item, "temperature": random.randint(70, 90)}  # noqa: S311


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    worker.run()
