"""How RPCs of later versions are refused: not while their client still says its first word."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_kit.errors import Unimplemented
from janus_orchestration.refusals import refuse_the_rest


class Nothing:
    """A servicer without any RPC of its own."""


refuse_the_rest(Nothing, pb.DESCRIPTOR.services_by_name["OrchestrationService"])


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_a_session_is_refused_after_its_first_message_or_its_end(count: int) -> None:
    heard: list[int | str] = []

    async def requests() -> AsyncIterator[str]:
        for number in range(count):
            heard.append(number)
            yield "message"
        heard.append("the end")

    servicer: Any = Nothing()
    with pytest.raises(Unimplemented):
        await anext(servicer.Session(requests(), None))
    assert heard == ([0] if count else ["the end"])
