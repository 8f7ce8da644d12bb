"""Nouns as rows keep them."""

from datetime import timedelta

import pytest

from janus_orchestration.adapters import rows
from janus_orchestration.model import AgentSpec, AgentTool, ApprovalPolicy, Verdict


@pytest.mark.parametrize("instructions", ["short", "long" * rows._MOST_REMEMBERED_CHARS])
def test_a_specification_is_read_as_it_was_written_however_often(instructions: str) -> None:
    specs = [
        AgentSpec(
            name,
            instructions=instructions,
            tools=(AgentTool("search", timeout=timedelta(seconds=3)),),
            approval=ApprovalPolicy(("search",), on_expiry=Verdict.DECLINED),
        )
        for name in ("one", "two")
    ]
    for _ in range(2):
        assert [rows.spec_from(rows.spec_to(spec)) for spec in specs] == specs
