"""Reading one's own writes: tokens, and waiting until the indexer caught up."""

import asyncio
import base64
import binascii
import struct
import zlib

from janus_kit.errors import InvalidArgument
from janus_memory.ports import Records

WAIT_S = 10.0
"""Longest wait of a write with READ_YOUR_WRITES."""
RECALL_WAIT_S = 0.5
"""Longest wait of a recall with a token before it scans what is not indexed."""
# Below the indexer's own pace nothing is gained; above it a write waits for nothing.
_POLL_S = 0.02
_FORMAT = struct.Struct(">QQI")


def token(space_no: int, outbox_id: int) -> str:
    """An opaque name for "everything written to the space so far"."""
    head = struct.pack(">QQ", space_no, outbox_id)
    return base64.urlsafe_b64encode(head + struct.pack(">I", zlib.crc32(head))).decode().rstrip("=")


def read_token(text: str, space_no: int) -> int:
    """The outbox row that a token stands for. Raises InvalidArgument for one of another space."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        number, outbox_id, check = _FORMAT.unpack(data)
    except (binascii.Error, struct.error, ValueError):
        number, outbox_id, check, data = 0, 0, 0, b"\x01"
    if check != zlib.crc32(data[:16]) or number != space_no or outbox_id >= 1 << 63:
        raise InvalidArgument("consistency_token", "must come from a write to the same space")
    return int(outbox_id)


async def caught_up(records: Records, tenant: str, space_no: int, upto: int, until: float) -> bool:
    """Whether the index has everything up to an outbox row, waiting until a time of the event loop's clock."""
    loop = asyncio.get_running_loop()
    while True:
        async with records.transaction(tenant) as tx:
            if not await tx.unindexed(space_no, upto):
                return True
        if loop.time() + _POLL_S >= until:
            return False
        await asyncio.sleep(_POLL_S)
