"""The body of a Messages request.

What a model takes (thinking by budget or by effort, sampling, schemas) is in
``families``; what is not known of a model is tried.
"""

import json
from typing import Any

from janus_inference.dialects import schemas
from janus_inference.dialects.anthropic_blocks import BlockWriter
from janus_inference.dialects.anthropic_thinking import thinking_of
from janus_inference.dialects.capabilities import unsupported
from janus_inference.families import family
from janus_inference.model import JsonFormat, Prompt, ToolCall, ToolChoiceMode, ToolDefinition
from janus_inference.profiles import DEFAULT_MAX_OUTPUT_TOKENS, max_output_tokens
from janus_kit.errors import InvalidArgument

_CHOICE = {ToolChoiceMode.AUTO: "auto", ToolChoiceMode.NONE: "none", ToolChoiceMode.REQUIRED: "any"}

# Set by Janus whatever the prompt says, so that options cannot set them.
RESERVED = frozenset({"model", "messages", "max_tokens", "stream"})
# What options may add to: tools of the provider's own, further settings of the output and of thinking.
LISTS, OBJECTS = ("tools",), ("output_config", "thinking")
# What counting tokens takes of the request for an answer; it refuses anything else.
COUNTED = frozenset(
    {
        "model",
        "messages",
        "system",
        "thinking",
        "tools",
        "tool_choice",
        "output_config",
        "cache_control",
        "mcp_servers",
        "context_management",
        "speed",
    }
)


_LEAST_TOP_P_THINKING = 0.95


def messages_body(prompt: Prompt, model: str, issuer: str) -> dict[str, Any]:
    """The request for a streamed answer. Raises InvalidArgument for what cannot be said in it."""
    thinking = thinking_of(prompt, model)
    most = prompt.max_output_tokens or max_output_tokens(model)
    writer = BlockWriter(prompt, model, issuer)
    messages = writer.messages()
    if not messages:
        rule = "must say something that is not blank outside ROLE_SYSTEM: this provider answers no instructions alone"
        raise InvalidArgument("prompt.messages", rule)
    body: dict[str, Any] = {
        "model": model,
        "messages": messages,
        # The budget counts as output, so the default leaves the answer room beside it.
        "max_tokens": most or DEFAULT_MAX_OUTPUT_TOKENS + thinking.budget,
        "stream": True,
    }
    if system := writer.system():
        body["system"] = system
    if thinking.said is not None:
        body["thinking"] = thinking.said
    if prompt.tools:
        body["tools"] = [_tool(tool, index, model) for index, tool in enumerate(prompt.tools)]
    elif (called := _called(prompt)) and not _brings_tools(prompt):
        # Calls in the conversation are refused where no tools are defined.
        body["tools"] = [{"name": name, "input_schema": {"type": "object"}} for name in called]
        body["tool_choice"] = {"type": "none"}
    if choice := _tool_choice(prompt):
        body["tool_choice"] = choice
    if thinking.said is not None and thinking.said["type"] == "enabled":
        _refuse_beside_thinking(prompt, model)
    if prompt.stop:
        body["stop_sequences"] = list(prompt.stop)
    config: dict[str, Any] = {}
    if thinking.effort is not None:
        config["effort"] = thinking.effort
    if (form := _format(prompt, model)) is not None:
        config["format"] = form
    if config:
        body["output_config"] = config
    return body | _sampling(prompt, model)


def _refuse_beside_thinking(prompt: Prompt, model: str) -> None:
    """A model that thinks by a budget chooses its tools itself, and draws tokens in its own way."""
    given, choice = prompt.sampling, prompt.tool_choice
    if prompt.may_call and choice is not None and choice.mode in (ToolChoiceMode.REQUIRED, ToolChoiceMode.NAMED):
        rule = "this provider forces no tool while the model reasons"
        raise unsupported(model, "tool_choice", "prompt.tool_choice.mode", rule)
    allowed = (
        ("temperature", given.temperature in (None, 1), "must be 1"),
        ("top_k", given.top_k is None, "must be unset"),
        ("top_p", given.top_p is None or given.top_p >= _LEAST_TOP_P_THINKING, f"must be {_LEAST_TOP_P_THINKING} to 1"),
    )
    for name, is_allowed, rule in allowed:
        if not is_allowed:
            raise unsupported(model, name, f"prompt.sampling.{name}", f"{rule} while the model reasons")


def count_body(prompt: Prompt, model: str, issuer: str) -> dict[str, Any]:
    """The request for the number of tokens of the same prompt."""
    body = messages_body(prompt, model, issuer)
    return {name: value for name, value in body.items() if name in COUNTED}


def _sampling(prompt: Prompt, model: str) -> dict[str, Any]:
    given = prompt.sampling
    for name in ("frequency_penalty", "presence_penalty", "seed"):
        if getattr(given, name) is not None:
            rule = f"this provider does not know {name}"
            raise unsupported(model, name, f"prompt.sampling.{name}", rule)
    if given.top_logprobs is not None:
        rule = "this provider gives no log-probabilities"
        raise unsupported(model, "LOGPROBS", "prompt.sampling.top_logprobs", rule)
    if given.temperature is not None and given.temperature > 1:
        rule = "this provider takes at most 1"
        raise unsupported(model, "temperature", "prompt.sampling.temperature", rule)
    said = {name: value for name in ("temperature", "top_p", "top_k") if (value := getattr(given, name)) is not None}
    if said and not family(model).sampling:
        name = next(iter(said))
        raise unsupported(model, name, f"prompt.sampling.{name}", "this model draws tokens in its own way")
    return said


def _cannot_hold(model: str) -> bool:
    """Whether a model is known to have no schemas; one that is not known is tried."""
    known = family(model).capabilities
    return bool(known) and "JSON_SCHEMA" not in known


def _format(prompt: Prompt, model: str) -> dict[str, Any] | None:
    """A schema that the answer is held to. Without `strict` the model is asked in words, see ``_asked``."""
    wanted = prompt.response_format
    if wanted is None:
        return None
    if isinstance(wanted, JsonFormat):
        rule = "this provider takes a JSON schema, not JSON without one"
        raise unsupported(model, "JSON", "prompt.response_format.json", rule)
    if not wanted.strict:
        return None
    if _cannot_hold(model):
        raise schemas.refuse_strict_format(model)
    return {"type": "json_schema", "schema": json.loads(wanted.schema_json)}


def _brings_tools(prompt: Prompt) -> bool:
    """Whether the provider's own tools are among the options."""
    return bool(prompt.provider_options_json and json.loads(prompt.provider_options_json).get("tools"))


def _called(prompt: Prompt) -> list[str]:
    """The names of the tools that were called in the conversation."""
    parts = (part for message in prompt.messages for part in message.parts)
    return list(dict.fromkeys(part.name for part in parts if isinstance(part, ToolCall)))


def _tool(tool: ToolDefinition, index: int, model: str) -> dict[str, Any]:
    made: dict[str, Any] = {"name": tool.name, "input_schema": schemas.parameters(tool)}
    if tool.description:
        made["description"] = tool.description
    if tool.strict:
        if _cannot_hold(model):
            raise schemas.refuse_strict_tool(model, index)
        made["strict"] = True
    return made


def _tool_choice(prompt: Prompt) -> dict[str, Any] | None:
    if not prompt.may_call:
        return None
    given, parallel = prompt.tool_choice, prompt.parallel_tool_calls
    if given is None and parallel is None:
        return None
    choice: dict[str, Any] = {"type": "auto"}
    if given is not None:
        named = given.mode is ToolChoiceMode.NAMED
        choice = {"type": "tool", "name": given.name} if named else {"type": _CHOICE[given.mode]}
    if parallel is not None and choice["type"] != "none":
        choice["disable_parallel_tool_use"] = not parallel
    return choice
