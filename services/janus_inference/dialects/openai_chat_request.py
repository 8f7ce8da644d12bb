"""The body of a Chat Completions request."""

import json
from typing import Any

from janus_inference.dialects import schemas
from janus_inference.dialects.capabilities import unsupported
from janus_inference.dialects.efforts import effort_word
from janus_inference.dialects.openai_chat_messages import MessageWriter
from janus_inference.families import family
from janus_inference.model import (
    Effort,
    JsonFormat,
    JsonSchemaFormat,
    Prompt,
    ReasoningOptions,
    ToolChoiceMode,
    ToolDefinition,
)
from janus_inference.profiles import ChatProfile, EffortForm

# Set by Janus whatever the prompt says, so that options cannot set them.
RESERVED = frozenset({"model", "messages", "stream", "stream_options", "n"})


def chat_body(prompt: Prompt, model: str, profile: ChatProfile, issuer: str) -> dict[str, Any]:
    """The request for a streamed answer. Raises InvalidArgument for what cannot be said in it."""
    body: dict[str, Any] = {"model": model, "messages": MessageWriter(model, profile, issuer).messages(prompt)}
    body["stream"] = True
    if profile.stream_usage:
        body["stream_options"] = {"include_usage": True}
    choice = None if prompt.tool_choice is None else prompt.tool_choice.mode
    if choice in (ToolChoiceMode.REQUIRED, ToolChoiceMode.NAMED) and not profile.tool_choice:
        rule = "this provider leaves it to the model whether it calls a tool"
        raise unsupported(model, "tool_choice", "prompt.tool_choice.mode", rule)
    offers = profile.tool_choice or choice is not ToolChoiceMode.NONE
    if prompt.tools and offers:
        body["tools"] = [_tool(tool, index, model, profile) for index, tool in enumerate(prompt.tools)]
    # Without tools there is nothing to choose from, and some refuse to be told how.
    if prompt.tool_choice is not None and profile.tool_choice and _may_choose(prompt):
        body["tool_choice"] = (
            {"type": "function", "function": {"name": prompt.tool_choice.name}}
            if prompt.tool_choice.mode is ToolChoiceMode.NAMED
            else prompt.tool_choice.mode.value
        )
    if prompt.parallel_tool_calls is not None and offers and _has_tools(prompt):
        body["parallel_tool_calls"] = prompt.parallel_tool_calls
    if prompt.response_format is not None:
        body["response_format"] = _format(prompt.response_format, model, profile)
    if prompt.max_output_tokens is not None:
        body[profile.max_tokens_field] = prompt.max_output_tokens
    if prompt.stop:
        if profile.max_stop is not None and len(prompt.stop) > profile.max_stop:
            rule = f"this provider takes at most {profile.max_stop} stop sequences"
            raise unsupported(model, "stop", "prompt.stop", rule)
        body["stop"] = list(prompt.stop)
    return body | _sampling(prompt, model, profile) | _reasoning(prompt, model, profile)


def _has_tools(prompt: Prompt) -> bool:
    """Whether the request will have tools: the caller's, or the provider's own among the options."""
    if prompt.tools:
        return True
    return bool(prompt.provider_options_json and json.loads(prompt.provider_options_json).get("tools"))


def _may_choose(prompt: Prompt) -> bool:
    """Whether a choice of tools may be said; one that changes nothing is refused where there are none."""
    mode = prompt.tool_choice.mode if prompt.tool_choice is not None else ToolChoiceMode.AUTO
    idle = mode in (ToolChoiceMode.AUTO, ToolChoiceMode.NONE)
    # An option may bring tools without naming them, as a preset does.
    return _has_tools(prompt) if idle else prompt.may_call


def _sampling(prompt: Prompt, model: str, profile: ChatProfile) -> dict[str, Any]:
    given = prompt.sampling
    if given.top_k is not None and not profile.extra_sampling:
        raise unsupported(model, "top_k", "prompt.sampling.top_k", "this provider does not know top_k")
    names = ("temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty")
    said: dict[str, Any] = {name: value for name in names if (value := getattr(given, name)) is not None}
    if given.seed is not None:
        said[profile.seed_field] = given.seed
    if given.top_logprobs is not None:
        if not profile.logprobs:
            rule = "this provider gives no log-probabilities"
            raise unsupported(model, "LOGPROBS", "prompt.sampling.top_logprobs", rule)
        said |= {"logprobs": True, "top_logprobs": given.top_logprobs}
    return said


def _reasoning(prompt: Prompt, model: str, profile: ChatProfile) -> dict[str, Any]:
    """How much to think. This dialect has no field for a summary: most servers show all of it, OpenAI none."""
    asked = prompt.reasoning
    if asked is None:
        return {}
    if asked.summary and profile.by_family and family(model).efforts != () and not _is_off(asked):
        rule = "is not shown by Chat Completions, which stop sequences, a seed, penalties, audio and some options need"
        raise unsupported(model, "REASONING", "prompt.reasoning.summary", rule)
    if asked.budget_tokens is not None:
        if profile.effort is EffortForm.OBJECT:
            return {"reasoning": {"max_tokens": asked.budget_tokens} if asked.budget_tokens else {"enabled": False}}
        if asked.budget_tokens:
            rule = "this provider takes an effort, not a number of tokens"
            raise unsupported(model, "REASONING", "prompt.reasoning.budget_tokens", rule)
    effort = Effort.NONE if asked.budget_tokens == 0 else asked.effort
    if effort is None:
        return {}
    off = effort is Effort.NONE
    match profile.effort:
        case EffortForm.OBJECT:
            return {"reasoning": {"effort": effort.value}}
        case EffortForm.SWITCH:
            return {"thinking": {"type": "disabled" if off else "enabled"}}
        case EffortForm.TEMPLATE | EffortForm.WORD_TEMPLATE if off:
            return {"chat_template_kwargs": {"enable_thinking": False}}
    word = effort_word(effort, model, _words(model, profile))
    if word is None:
        return {}
    if profile.effort is EffortForm.TEMPLATE:
        return {"chat_template_kwargs": {"reasoning_effort": word}}
    return {"reasoning_effort": word}


def _is_off(asked: ReasoningOptions) -> bool:
    return asked.effort is Effort.NONE if asked.budget_tokens is None else asked.budget_tokens == 0


def _words(model: str, profile: ChatProfile) -> tuple[str, ...] | None:
    name = model.rpartition("/")[2].lower()
    for prefix, words in profile.effort_words.items():
        if name.startswith(prefix):
            return words
    # What a model takes elsewhere is no rule for a server of somebody's own.
    return family(model).efforts if profile.by_family else None


def _format(wanted: JsonFormat | JsonSchemaFormat, model: str, profile: ChatProfile) -> dict[str, Any]:
    if isinstance(wanted, JsonFormat):
        return {"type": "json_object"}
    if not schemas.can_hold(model, profile):
        if wanted.strict:
            raise schemas.refuse_strict_format(model)
        return {"type": "json_object"}
    schema: dict[str, Any] = {"name": wanted.name, "schema": json.loads(wanted.schema_json)}
    if wanted.description:
        schema["description"] = wanted.description
    if wanted.strict:
        schema["strict"] = True
    return {"type": "json_schema", "json_schema": schema}


def _tool(tool: ToolDefinition, index: int, model: str, profile: ChatProfile) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters_schema_json or tool.strict:
        function["parameters"] = schemas.parameters(tool)
    if tool.strict:
        if not (profile.strict_tools and schemas.can_hold(model, profile)):
            raise schemas.refuse_strict_tool(model, index)
        function["strict"] = True
    return {"type": "function", "function": function}
