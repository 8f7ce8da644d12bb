"""The body of a Responses request. Nothing is kept at the provider: each request says all of it."""

import json
import re
from collections.abc import Mapping
from typing import Any

from janus_inference.dialects import schemas
from janus_inference.dialects.capabilities import unsupported
from janus_inference.dialects.efforts import effort_word
from janus_inference.dialects.openai_responses_input import ItemWriter
from janus_inference.families import family
from janus_inference.model import (
    Effort,
    JsonFormat,
    JsonSchemaFormat,
    Prompt,
    ToolChoiceMode,
    ToolDefinition,
)
from janus_inference.profiles import ChatProfile, EffortForm

# Set by Janus whatever the prompt says, so that options cannot set them; and
# what needs the provider to keep the conversation.
# What options may add to: tools of the provider's own, more to include, further settings.
LISTS, OBJECTS = ("tools", "include"), ("text", "reasoning")
RESERVED = frozenset({"model", "input", "stream", "store"} | {"background", "previous_response_id", "conversation"})
LEAST_OUTPUT_TOKENS = 16
"""What OpenAI takes for `max_output_tokens`."""

_LOGPROBS = "message.output_text.logprobs"
_COUNTED = ("model", "input", "instructions", "parallel_tool_calls", "reasoning", "text", "tool_choice", "tools")
_GPT = re.compile(r"gpt-(\d+)(?:\.(\d+))?")
_FIRST_WITH_BREAKPOINTS = (5, 6)


def responses_body(prompt: Prompt, model: str, profile: ChatProfile, issuer: str) -> dict[str, Any]:
    """The request for a streamed answer. Raises InvalidArgument for what cannot be said in it."""
    _refuse(prompt, model, profile)
    body: dict[str, Any] = {"model": model, "input": _input(prompt, model, profile, issuer)}
    body |= {"stream": True, "store": False}
    if prompt.system:
        body["instructions"] = prompt.system
    if prompt.tools:
        body["tools"] = [_tool(tool, index, model, profile) for index, tool in enumerate(prompt.tools)]
    if (choice := prompt.tool_choice) is not None and prompt.may_call:
        named = choice.mode is ToolChoiceMode.NAMED
        body["tool_choice"] = {"type": "function", "name": choice.name} if named else choice.mode.value
    if prompt.parallel_tool_calls is not None and prompt.may_call:
        body["parallel_tool_calls"] = prompt.parallel_tool_calls
    if prompt.response_format is not None:
        body["text"] = {"format": _format(prompt.response_format, model, profile)}
    if prompt.max_output_tokens is not None:
        body["max_output_tokens"] = prompt.max_output_tokens
    names = ("temperature", "top_p", "top_logprobs")
    body |= {name: value for name in names if (value := getattr(prompt.sampling, name)) is not None}
    if reasoning := _reasoning(prompt, model, profile):
        body["reasoning"] = reasoning
    if include := _include(prompt, model, profile):
        body["include"] = include
    return body


def counted(body: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a request that counting its tokens takes."""
    return {name: body[name] for name in _COUNTED if name in body}


def _refuse(prompt: Prompt, model: str, profile: ChatProfile) -> None:
    """Raises InvalidArgument for what this dialect has no field for."""
    if prompt.stop:
        raise unsupported(model, "stop", "prompt.stop", "this API takes no stop sequences")
    for name in ("top_k", "seed", "frequency_penalty", "presence_penalty"):
        if getattr(prompt.sampling, name) is not None:
            raise unsupported(model, name, f"prompt.sampling.{name}", f"this API does not know {name}")
    if prompt.sampling.top_logprobs is not None and not profile.logprobs:
        rule = "this provider gives no log-probabilities"
        raise unsupported(model, "LOGPROBS", "prompt.sampling.top_logprobs", rule)
    most = prompt.max_output_tokens
    if profile.by_family and most is not None and most < LEAST_OUTPUT_TOKENS:
        rule = f"this API takes at least {LEAST_OUTPUT_TOKENS}"
        raise unsupported(model, "max_output_tokens", "prompt.max_output_tokens", rule)


def _input(prompt: Prompt, model: str, profile: ChatProfile, issuer: str) -> list[dict[str, Any]]:
    items = ItemWriter(model, profile, issuer, marks=_takes_breakpoints(model, profile)).items(prompt)
    wanted = prompt.response_format
    if isinstance(wanted, JsonSchemaFormat) and not schemas.can_hold(model, profile):
        items.insert(0, {"role": "system", "content": schemas.asked_for(wanted)})
    return items


def _takes_breakpoints(model: str, profile: ChatProfile) -> bool:
    """OpenAI's models from GPT-5.6 on, at OpenAI or behind a router that passes breakpoints on."""
    found = _GPT.match(model.rpartition("/")[2].lower())
    if found is None or not (profile.by_family or profile.cache_control):
        return False
    return (int(found[1]), int(found[2] or 0)) >= _FIRST_WITH_BREAKPOINTS


def _tool(tool: ToolDefinition, index: int, model: str, profile: ChatProfile) -> dict[str, Any]:
    if tool.strict and not (profile.strict_tools and schemas.can_hold(model, profile)):
        raise schemas.refuse_strict_tool(model, index)
    # Left out, `strict` would mean that it is.
    said = {"type": "function", "name": tool.name, "parameters": schemas.parameters(tool), "strict": tool.strict}
    return said | ({"description": tool.description} if tool.description else {})


def _format(wanted: JsonFormat | JsonSchemaFormat, model: str, profile: ChatProfile) -> dict[str, Any]:
    if isinstance(wanted, JsonFormat):
        return {"type": "json_object"}
    if not schemas.can_hold(model, profile):
        if wanted.strict:
            raise schemas.refuse_strict_format(model)
        return {"type": "json_object"}
    said = {"type": "json_schema", "name": wanted.name, "schema": json.loads(wanted.schema_json)}
    said["strict"] = wanted.strict
    return said | ({"description": wanted.description} if wanted.description else {})


def _reasoning(prompt: Prompt, model: str, profile: ChatProfile) -> dict[str, Any]:
    asked, said = prompt.reasoning, dict[str, Any]()
    if asked is None:
        return said
    effort = asked.effort
    if asked.budget_tokens is not None:
        effort = None if asked.budget_tokens else Effort.NONE
        if asked.budget_tokens and profile.effort is EffortForm.OBJECT:
            said["max_tokens"] = asked.budget_tokens
        elif asked.budget_tokens:
            rule = "this provider takes an effort, not a number of tokens"
            raise unsupported(model, "REASONING", "prompt.reasoning.budget_tokens", rule)
    if effort is not None:
        word = effort_word(effort, model, family(model).efforts if profile.by_family else None)
        if word is not None:
            said["effort"] = word
    thinks = effort is not Effort.NONE and not (profile.by_family and family(model).efforts == ())
    if asked.summary and thinks:
        said["summary"] = "auto"
    return said


def _include(prompt: Prompt, model: str, profile: ChatProfile) -> list[str]:
    wanted = []
    known = family(model).capabilities
    if profile.encrypted_reasoning and ("REASONING" in known if known else prompt.reasoning is not None):
        wanted.append("reasoning.encrypted_content")
    if prompt.sampling.top_logprobs is not None:
        wanted.append(_LOGPROBS)
    return wanted


def asks_logprobs(body: Mapping[str, Any]) -> bool:
    """Whether a request asks for the log-probabilities of tokens."""
    included = body.get("include")
    return isinstance(included, list) and _LOGPROBS in included
