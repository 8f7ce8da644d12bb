"""Every bound that the contract puts on a prompt, checked at once and named by field."""

import json
import math
import re
from collections.abc import Mapping

from janus_inference.model import (
    MOST_ANSWER_BYTES,
    MOST_ARGUMENTS_BYTES,
    MOST_CALL_ID_CHARS,
    MOST_CITATION_BYTES,
    MOST_OPAQUE_BYTES,
    MOST_PARTS,
    MOST_TEXT_BYTES,
    MOST_TYPE_CHARS,
    TOOL_NAME,
    Audio,
    Citation,
    Document,
    Empty,
    Image,
    JsonSchemaFormat,
    Media,
    Message,
    Opaque,
    Part,
    Prompt,
    Reasoning,
    Refusal,
    Role,
    Text,
    ToolCall,
    ToolChoiceMode,
    ToolDefinition,
    ToolResult,
)
from janus_kit.json_schema.rules import object_problem, schema_problem
from janus_kit.validate import Violations

KiB = 1024
MiB = 1024 * KiB
MAX_MESSAGES = 10_000
MAX_ALL_PARTS = 20_000
MAX_MEDIA_BYTES = 3 * MiB
MAX_ISSUER_CHARS = 64
MAX_RESULT_PARTS = 64
MAX_TOOLS = 128
MAX_STOPS = 16
MAX_LABELS = 16
MAX_FALLBACKS = 8
MAX_INPUTS = 2048
MAX_CACHE_AGE_S = 30 * 86_400
MAX_SCHEMA_BYTES = 64 * KiB
MAX_SCHEMA_DEPTH = 32
MAX_SCHEMA_NODES = 1000
MAX_DESCRIPTION_BYTES = 16 * KiB

_SCHEMA_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_LABEL_KEY = re.compile(r"[a-z0-9_.-]{1,64}", re.ASCII)
_WORD = r"[A-Za-z0-9!#$&^_.+-]+"
_MIME_TYPE = re.compile(rf"{_WORD}/{_WORD}(?: ?; ?{_WORD}={_WORD})*", re.ASCII)
_TOOL_NAME_RULE = "must be 1 to 64 characters of letters, digits, '_', '.' and '-'"


def validate(prompt: Prompt) -> None:
    """Raises InvalidArgument with every broken rule, as paths from `prompt`."""
    check = Violations()
    check.length("prompt.model", prompt.model, at_most=256)
    _text(check, "prompt.system", prompt.system, MOST_TEXT_BYTES)
    if check.count("prompt.messages", prompt.messages, at_least=1, at_most=MAX_MESSAGES):
        _messages(check, prompt.messages)
    _tools(check, prompt)
    _answer(check, prompt)
    _limits(check, prompt)
    labels(check, "prompt.labels", prompt.labels)
    if prompt.provider_options_json:
        broken = object_problem(prompt.provider_options_json, 64 * KiB, MAX_SCHEMA_DEPTH)
        check.require(broken is None, "prompt.provider_options_json", broken or "")
    check.id("prompt.request_id", prompt.request_id, optional=True)
    check.done()


def validate_embedding(model: str, inputs: list[str], dimensions: int | None, found: Mapping[str, str]) -> None:
    """The same for what is to be embedded; ``found`` are the labels."""
    check = Violations()
    check.length("model", model, at_most=256)
    if check.count("inputs", inputs, at_least=1, at_most=MAX_INPUTS):
        for index, text in enumerate(inputs):
            check.length(f"inputs[{index}]", text, at_least=1, at_most=32_768)
    if dimensions is not None:
        check.between("dimensions", dimensions, 1, 4096)
    labels(check, "labels", found)
    check.done()


def labels(check: Violations, field: str, found: Mapping[str, str]) -> None:
    """Free labels for usage reports."""
    check.count(field, found, at_most=MAX_LABELS)
    for key, value in found.items():
        named = f"{field}[{key[:64]}]"
        check.require(
            _LABEL_KEY.fullmatch(key) is not None,
            named,
            "a key must be 1 to 64 characters of a-z, 0-9, '_', '.' and '-'",
        )
        check.length(named, value, at_most=128)


def _messages(check: Violations, messages: tuple[Message, ...]) -> None:
    open_calls: set[str] = set()
    for index, message in enumerate(messages):
        path = f"prompt.messages[{index}]"
        # Also an enum number that this version does not know is unspecified.
        check.require(message.role is not Role.UNSPECIFIED, f"{path}.role", "must be set to a value of the enum")
        check.length(f"{path}.name", message.name, at_most=128)
        check.id(f"{path}.id", message.id, optional=True)
        check.count(f"{path}.parts", message.parts, at_least=1, at_most=MOST_PARTS)
        if message.role is Role.ASSISTANT:
            calls = [part.call_id for part in message.parts if isinstance(part, ToolCall)]
            open_calls = set(calls)
            check.require(len(open_calls) == len(calls), f"{path}.parts", "ids of tool calls must be unique")
        for at, part in enumerate(message.parts):
            _part(check, f"{path}.parts[{at}]", part, message.role)
            if isinstance(part, ToolResult) and message.role is Role.TOOL:
                check.require(
                    part.call_id in open_calls,
                    f"{path}.parts[{at}].tool_result.call_id",
                    "must answer a call of the assistant message before it",
                )


def _part(check: Violations, path: str, part: Part, role: Role) -> None:
    if isinstance(part, Empty):
        check.add(path, "must have a kind that this version knows")
        return
    if isinstance(part, ToolResult) != (role is Role.TOOL) and role is not Role.UNSPECIFIED:
        check.add(path, "tool results, and nothing else, are what a ROLE_TOOL message has")
    if isinstance(part, Image | Audio | Document) and role not in (Role.USER, Role.UNSPECIFIED):
        check.add(path, "images, audio and documents belong in a ROLE_USER message")
    if isinstance(part, ToolCall | Reasoning | Refusal | Citation) and role in (
        Role.USER,
        Role.SYSTEM,
    ):
        check.add(path, "parts of this kind belong in a ROLE_ASSISTANT message")
    match part:
        case Text(text=text):
            # What Janus answered is taken back as it was.
            most = MOST_ANSWER_BYTES if role is Role.ASSISTANT else MOST_TEXT_BYTES
            _text(check, f"{path}.text", text, most)
        case Image(media=media):
            _media(check, f"{path}.image", media)
        case Audio(media=media):
            _media(check, f"{path}.audio", media)
        case Document(media=media, title=title):
            _media(check, f"{path}.document.media", media)
            check.length(f"{path}.document.title", title, at_most=256)
        case ToolCall():
            check.length(f"{path}.tool_call.call_id", part.call_id, at_least=1, at_most=MOST_CALL_ID_CHARS)
            named = TOOL_NAME.fullmatch(part.name) is not None
            check.require(named, f"{path}.tool_call.name", _TOOL_NAME_RULE)
            _text(check, f"{path}.tool_call.arguments_json", part.arguments_json, MOST_ARGUMENTS_BYTES)
        case ToolResult():
            check.length(f"{path}.tool_result.call_id", part.call_id, at_least=1, at_most=MOST_CALL_ID_CHARS)
            check.count(f"{path}.tool_result.parts", part.parts, at_most=MAX_RESULT_PARTS)
            for at, inner in enumerate(part.parts):
                _result_part(check, f"{path}.tool_result.parts[{at}]", inner)
        case Refusal(text=text):
            _text(check, f"{path}.refusal", text, MOST_ANSWER_BYTES)
        case Reasoning():
            _reasoning(check, f"{path}.reasoning", part)
        case Citation():
            _citation(check, f"{path}.citation", part)
        case Opaque():
            check.length(f"{path}.opaque.issuer", part.issuer, at_least=1, at_most=MAX_ISSUER_CHARS)
            check.length(f"{path}.opaque.type", part.type, at_least=1, at_most=MOST_TYPE_CHARS)
            check.size(f"{path}.opaque.data", part.data, at_most=MOST_OPAQUE_BYTES)


def _reasoning(check: Violations, path: str, part: Reasoning) -> None:
    _text(check, f"{path}.text", part.text or "", MOST_ANSWER_BYTES)
    _text(check, f"{path}.summary", part.summary or "", MOST_ANSWER_BYTES)
    check.size(f"{path}.redacted", part.redacted or b"", at_most=MOST_TEXT_BYTES)
    check.size(f"{path}.signature", part.signature, at_most=MOST_TEXT_BYTES)
    check.length(f"{path}.issuer", part.issuer, at_most=MAX_ISSUER_CHARS)
    proven = bool(part.signature) or part.redacted is not None
    check.require(bool(part.issuer) or not proven, f"{path}.issuer", "must be set with `signature` or `redacted`")


def _citation(check: Violations, path: str, part: Citation) -> None:
    check.require(part.start >= 0, f"{path}.start", "must not be negative")
    check.require(part.end >= part.start, f"{path}.end", "must not be before the start")
    check.length(f"{path}.title", part.title, at_most=1024)
    check.length(f"{path}.uri", part.uri, at_most=2048)
    _text(check, f"{path}.quote", part.quote, 64 * KiB)
    check.require(0 <= part.part_index < MOST_PARTS, f"{path}.part_index", "must be the index of a part")
    check.length(f"{path}.issuer", part.issuer, at_most=MAX_ISSUER_CHARS)
    check.require(bool(part.issuer) or not part.data, f"{path}.issuer", "must be set with `data`")
    check.size(f"{path}.data", part.data, at_most=MOST_CITATION_BYTES)


def _result_part(check: Violations, path: str, part: Part) -> None:
    if isinstance(part, Text | Image | Document | Opaque):
        _part(check, path, part, Role.UNSPECIFIED)
    else:
        check.add(path, "must be text, an image, a document or a provider's own block")


def _media(check: Violations, path: str, media: Media) -> None:
    if media.data is not None or media.mime_type:
        named = len(media.mime_type) <= 128 and _MIME_TYPE.fullmatch(media.mime_type) is not None
        check.require(named, f"{path}.mime_type", "must be a MIME type, such as 'image/png', of at most 128 characters")
    if media.data is not None:
        check.size(f"{path}.data", media.data, at_least=1, at_most=MAX_MEDIA_BYTES)
    elif media.uri is not None:
        fine = media.uri.startswith("https://") and len(media.uri) <= 2048
        check.require(fine, f"{path}.uri", "must be an https URL of at most 2048 characters")
    else:
        check.add(path, "must have data or uri")


def _tools(check: Violations, prompt: Prompt) -> None:
    check.count("prompt.tools", prompt.tools, at_most=MAX_TOOLS)
    names: set[str] = set()
    for index, tool in enumerate(prompt.tools[:MAX_TOOLS]):
        path = f"prompt.tools[{index}]"
        _tool(check, path, tool)
        check.require(tool.name not in names, f"{path}.name", "must be unique among the tools")
        names.add(tool.name)
    choice = prompt.tool_choice
    if choice is None:
        return
    if choice.mode is ToolChoiceMode.NAMED:
        check.require(choice.name in names, "prompt.tool_choice.name", "must name one of the tools")
    else:
        check.require(not choice.name, "prompt.tool_choice.name", "is allowed only with NAMED")
    if choice.mode is ToolChoiceMode.REQUIRED:
        check.require(bool(names), "prompt.tool_choice.mode", "needs at least one tool")


def _tool(check: Violations, path: str, tool: ToolDefinition) -> None:
    check.require(TOOL_NAME.fullmatch(tool.name) is not None, f"{path}.name", _TOOL_NAME_RULE)
    _text(check, f"{path}.description", tool.description, MAX_DESCRIPTION_BYTES)
    if tool.parameters_schema_json:
        broken = schema_problem(tool.parameters_schema_json, MAX_SCHEMA_BYTES, MAX_SCHEMA_DEPTH, MAX_SCHEMA_NODES)
        if check.require(broken is None, f"{path}.parameters_schema_json", broken or ""):
            kind = json.loads(tool.parameters_schema_json).get("type", "object")
            check.require(kind == "object", f"{path}.parameters_schema_json", "must be the schema of an object")


def _answer(check: Violations, prompt: Prompt) -> None:
    """How the answer is to be: form, sampling, stops, length, thinking."""
    wanted = prompt.response_format
    if isinstance(wanted, JsonSchemaFormat):
        path = "prompt.response_format.json_schema"
        named = _SCHEMA_NAME.fullmatch(wanted.name) is not None
        check.require(named, f"{path}.name", "must be 1 to 64 characters of letters, digits, '_' and '-'")
        _text(check, f"{path}.description", wanted.description, MAX_DESCRIPTION_BYTES)
        broken = schema_problem(wanted.schema_json, MAX_SCHEMA_BYTES, MAX_SCHEMA_DEPTH, MAX_SCHEMA_NODES)
        check.require(broken is None, f"{path}.schema_json", broken or "")
    given = prompt.sampling
    for name, least, most in (
        ("temperature", 0, 2),
        ("frequency_penalty", -2, 2),
        ("presence_penalty", -2, 2),
        ("top_logprobs", 0, 20),
    ):
        if (value := getattr(given, name)) is not None:
            check.between(f"prompt.sampling.{name}", value, least, most)
    if given.top_p is not None:
        fine = math.isfinite(given.top_p) and 0 < given.top_p <= 1
        check.require(fine, "prompt.sampling.top_p", "must be above 0 and at most 1")
    if given.top_k is not None:
        check.require(given.top_k >= 1, "prompt.sampling.top_k", "must be 1 or more")
    check.count("prompt.stop", prompt.stop, at_most=MAX_STOPS)
    for index, stop in enumerate(prompt.stop[:MAX_STOPS]):
        check.length(f"prompt.stop[{index}]", stop, at_least=1, at_most=256)
    if prompt.max_output_tokens is not None:
        check.between("prompt.max_output_tokens", prompt.max_output_tokens, 1, 1_000_000)
    if prompt.reasoning is not None and prompt.reasoning.budget_tokens is not None:
        check.between("prompt.reasoning.budget_tokens", prompt.reasoning.budget_tokens, 0, 1_000_000)


def _limits(check: Violations, prompt: Prompt) -> None:
    """Times, and what to do when things go wrong."""
    for name in ("connect", "first_event", "idle", "total"):
        if (seconds := getattr(prompt.timeouts, name)) is not None:
            check.between(f"prompt.timeouts.{name}", seconds, 0.001, 3600, "seconds")
    check.count("prompt.routing.fallbacks", prompt.routing.fallbacks, at_most=MAX_FALLBACKS)
    for index, fallback in enumerate(prompt.routing.fallbacks[:MAX_FALLBACKS]):
        check.length(f"prompt.routing.fallbacks[{index}]", fallback, at_least=1, at_most=256)
    if prompt.routing.hedge_after is not None:
        check.between("prompt.routing.hedge_after", prompt.routing.hedge_after, 0.01, 60, "seconds")
    if prompt.cache.max_age is not None:
        check.between("prompt.cache.max_age", prompt.cache.max_age, 1, MAX_CACHE_AGE_S, "seconds")
    if prompt.linger is not None:
        check.between("prompt.linger", prompt.linger, 0, 600, "seconds")


def _text(check: Violations, field: str, text: str, most: int) -> None:
    # A character is at most four bytes, so most texts need no encoding to be known as short enough.
    fits = len(text) * 4 <= most or len(text.encode()) <= most
    check.require(fits, field, f"must be at most {most // KiB} KiB of UTF-8")
