"""The recorded Responses exchanges, which are no part of the repository, and what their requests say."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from janus_inference.model import ToolDefinition
from janus_inference.profiles import OPENAI, ChatProfile, chat_profile

RECORDINGS = Path(__file__).parents[4] / "shared" / "recordings" / "provider_exchanges.jsonl"
ISSUER = "recorded"


@cache
def exchanges() -> list[dict[str, Any]]:
    with RECORDINGS.open(encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    return [each for each in found if each["path"].endswith("/responses")]


def profile_for(exchange: dict[str, Any]) -> ChatProfile:
    if exchange["provider"] == "openai":
        return OPENAI
    # DeepSeek takes `strict` here and promises nothing for it, so its profile refuses it.
    return replace(chat_profile(exchange["host"]), strict_tools=True, json_schema=True)


def functions(request: dict[str, Any]) -> tuple[ToolDefinition, ...]:
    return tuple(
        ToolDefinition(tool["name"], tool["description"] or "", json.dumps(tool["parameters"]), bool(tool["strict"]))
        for tool in request.get("tools") or []
        if tool["type"] == "function" and not tool.get("defer_loading")
    )
