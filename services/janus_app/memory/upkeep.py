"""Erasing, checking, and what could not be indexed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from rich.console import Console

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import scope_pb2
from janus_app.embedded import read_state
from janus_app.memory.calls import Calls
from janus_app.memory.transfer import whole
from janus_app.refusals import Refused
from janus_app.settings import load_settings
from janus_app.terminal import Column, plain, print_json, print_table, when

_COUNTS = (Column("store"), Column("removed", right=True), Column("remaining", right=True))
_LETTERS = (
    Column("tenant"),
    Column("space"),
    Column("records", right=True),
    Column("since", left_out=1),
    Column("reason", folds=True),
)


def erase(
    console: Console,
    calls: Calls,
    subject: str,
    space: str,
    reason: str,
    file: Path | None,
    force: bool,
    *,
    as_json: bool,
) -> None:
    """Show the receipt, and write it where that is asked for."""
    from janus_memory.receipts import ReceiptError, verify_receipt

    request = pb.EraseRequest(scope=scope_pb2.Scope(space=space, subject=subject), reason=reason)
    # Nothing is erased where its receipt could not be written.
    with whole(file, force=force) if file is not None else nullcontext() as out:
        receipt = calls.unary("Erase", request).receipt
        if out is not None:
            text = json_format.MessageToJson(receipt, preserving_proto_field_name=True)
            out.write(f"{text}\n".encode())
    if as_json:
        print_json(receipt)
        return
    counts = [(each.store, str(each.removed), str(each.remaining)) for each in receipt.counts]
    print_table(console, _COUNTS, [[*map(plain, row)] for row in counts])
    try:
        verify_receipt(receipt, receipt.key_id)
        signed = f"signed with the key {receipt.key_id}"
    except ReceiptError as error:
        raise Refused(f"The receipt's signature is wrong: {error}") from None
    console.print(f"receipt {receipt.id}, {when(receipt.erased_at)} UTC, {signed}", highlight=False, markup=False)


def verify(
    console: Console,
    data: Path,
    config: Path | None,
    environ: Mapping[str, str],
    tenant: str,
    space: str,
    *,
    repair: bool,
) -> bool:
    """Print a row a space; whether nothing was wrong. Stores are the running mesh's, or those of the settings."""
    from janus_memory.verify import COLUMNS, cells
    from janus_memory.verify import verify as compare

    loaded = load_settings(config, _stores_of(data, environ))
    rows = []

    async def work() -> bool:
        well = True
        async for findings in compare(
            loaded["memory"],
            postgres=loaded["postgres"],
            redis=loaded["redis"],
            tenant=tenant,
            space=space,
            repair=repair,
        ):
            rows.append([*map(plain, cells(findings))])
            well = well and not findings.wrong and not findings.away
        return well

    well = asyncio.run(work())
    print_table(console, [Column(name) for name in COLUMNS], rows)
    return well


def dead_letters(
    console: Console,
    data: Path,
    config: Path | None,
    environ: Mapping[str, str],
    tenant: str,
    space: str,
    *,
    replay: bool,
) -> None:
    """Print a row for each reason, and have them tried again if asked."""
    from janus_kit.postgres import database
    from janus_memory.adapters.postgres_records import PostgresRecords
    from janus_memory.dead_letters import Replay

    loaded = load_settings(config, _stores_of(data, environ))

    async def work() -> None:
        async with database(loaded["postgres"], application="janus-memory-dead-letters") as pool:
            letters = Replay(PostgresRecords(pool))
            found = await letters.reasons(tenant, space)
            if not found:
                console.print("There are none.")
                return
            rows = [
                (each.tenant, each.space, str(each.rows), f"{each.oldest:%Y-%m-%d %H:%M:%S}", each.reason)
                for each in found
            ]
            print_table(console, _LETTERS, [[*map(plain, row)] for row in rows])
            if replay:
                replayed = await letters.run(tenant, space)
                console.print(f"{replayed} replayed: those that fail again come back here.", highlight=False)

    asyncio.run(work())


def _stores_of(data: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    """Addresses of the mesh that runs on a data folder; none where it has its stores from the settings."""
    state = read_state(data)
    if state is None:
        if not environ.get("JANUS_POSTGRES_URL") and not environ.get("JANUS_POSTGRES__URL"):
            raise Refused(f"No mesh is running on {data}. Start one with `janus serve`, or set JANUS_POSTGRES_URL.")
        return {}
    found = {
        "postgres.url": state.postgres_url,
        "redis.url": state.redis_url,
        "memory.chroma_url": state.chroma_url,
    }
    return {name: value for name, value in found.items() if value}
