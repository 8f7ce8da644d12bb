"""What well-known models can do, as data: by the beginning of their names, the longest that fits.

A name may carry the maker in front (`anthropic/claude-sonnet-4.5`), as routers
of several makers write it. Of a model that is not known nothing is said,
neither that it can nor that it cannot: then the provider decides.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache

_TOOLS = frozenset({"TEXT", "TOOLS", "PARALLEL_TOOLS"})
_JSON = frozenset({"JSON", "JSON_SCHEMA"})
_SEES = frozenset({"IMAGE_INPUT", "DOCUMENT_INPUT"})
_GPT_4 = _TOOLS | _JSON | _SEES | {"LOGPROBS", "PROMPT_CACHE"}
_THINKS = _TOOLS | _JSON | _SEES | {"REASONING", "PROMPT_CACHE"}
_CLAUDE = _TOOLS | _SEES | {"PROMPT_CACHE"}
_OPEN = _TOOLS | {"JSON"}


@dataclass(frozen=True, slots=True)
class Family:
    """Models whose names begin alike.

    ``capabilities`` are names of the contract's enum without its prefix.
    ``efforts``: the words for how much to think that it takes, least first;
    empty for a model that does not think, None for not known. ``budgets``: it
    takes a number of tokens for thinking. ``adaptive``: it decides itself how
    much to think. ``quiet``: it can be told not to think. ``sampling``: it
    takes temperature, top_p and top_k. The last three are True where nothing
    else is known.
    """

    capabilities: frozenset[str] = frozenset()
    context_window: int | None = None
    max_output: int | None = None
    efforts: tuple[str, ...] | None = None
    budgets: bool = True
    adaptive: bool = False
    quiet: bool = True
    sampling: bool = True
    dimensions: int | None = None


UNKNOWN = Family()
_NONE = ("none",)
_LOW = ("low", "medium", "high")
_GPT_5 = Family(_THINKS, 400_000, 128_000, ("minimal", *_LOW), quiet=False)
_GPT_51 = replace(_GPT_5, efforts=(*_NONE, *_LOW), quiet=True)
_GPT_52 = replace(_GPT_51, efforts=(*_NONE, *_LOW, "xhigh"))
_GPT_54 = replace(_GPT_52, context_window=1_050_000)
_CHAT = replace(_GPT_5, context_window=128_000, max_output=16_384, efforts=("medium",))
_O = Family(_THINKS, 200_000, 100_000, _LOW, quiet=False)
_4O = Family(_GPT_4, 128_000, 16_384, ())
_41 = Family(_GPT_4, 1_047_576, 32_768, ())
_AUDIO = Family(_TOOLS | {"AUDIO_INPUT"}, 128_000, 16_384, ())

_CLAUDE_3 = Family(_CLAUDE, 200_000, 4096, ())
_CLAUDE_35 = replace(_CLAUDE_3, max_output=8192)
_CLAUDE_4 = Family(_CLAUDE | {"REASONING"}, 200_000, 64_000)
_CLAUDE_45 = replace(_CLAUDE_4, capabilities=_CLAUDE | {"REASONING", "JSON_SCHEMA"})
_CLAUDE_46 = replace(_CLAUDE_45, context_window=1_000_000, max_output=128_000, efforts=_LOW, adaptive=True)
_CLAUDE_47 = replace(_CLAUDE_46, budgets=False, sampling=False)
_ALWAYS = replace(_CLAUDE_47, quiet=False)

_FAMILIES: dict[str, Family] = {
    "gpt-3.5-turbo": Family(_TOOLS | {"JSON", "LOGPROBS"}, 16_385, 4096, ()),
    "gpt-4": Family(frozenset({"TEXT", "TOOLS", "LOGPROBS"}), 8192, 8192, ()),
    "gpt-4-32k": Family(frozenset({"TEXT", "TOOLS", "LOGPROBS"}), 32_768, 32_768, ()),
    "gpt-4-turbo": Family(_TOOLS | {"JSON", "IMAGE_INPUT", "LOGPROBS"}, 128_000, 4096, ()),
    "gpt-4o": _4O,
    "gpt-4o-audio": _AUDIO,
    "gpt-4o-mini-audio": _AUDIO,
    "gpt-audio": _AUDIO,
    "gpt-4.1": _41,
    "gpt-5": _GPT_5,
    "gpt-5-chat": replace(_CHAT, capabilities=_GPT_4 - {"TOOLS", "PARALLEL_TOOLS"}, efforts=()),
    "gpt-5-pro": replace(_GPT_5, max_output=272_000, efforts=("high",)),
    "gpt-5-codex": replace(_GPT_5, efforts=_LOW),
    "gpt-5.1": _GPT_51,
    "gpt-5.1-codex": replace(_GPT_5, efforts=_LOW),
    "gpt-5.1-chat": _CHAT,
    "gpt-5.2": _GPT_52,
    "gpt-5.2-pro": replace(_GPT_5, efforts=("medium", "high", "xhigh")),
    "gpt-5.2-chat": _CHAT,
    "gpt-5.3": _GPT_52,
    "gpt-5.3-chat": _CHAT,
    "gpt-5.4": _GPT_54,
    "gpt-5.4-mini": _GPT_52,
    "gpt-5.4-nano": _GPT_52,
    "gpt-5.4-pro": replace(_GPT_54, efforts=("medium", "high", "xhigh"), quiet=False),
    "gpt-5.5": _GPT_54,
    "gpt-5.5-pro": replace(_GPT_54, efforts=("medium", "high", "xhigh"), quiet=False),
    "gpt-5.6": _GPT_54,
    "gpt-6": replace(_GPT_54, context_window=None, max_output=None, efforts=None),
    "gpt-6-astra": replace(_GPT_54, context_window=None, max_output=None, efforts=_LOW, quiet=False),
    "o1": _O,
    "o1-mini": replace(_O, capabilities=frozenset({"TEXT", "REASONING"}), context_window=128_000, max_output=65_536),
    "o3": _O,
    "o3-mini": replace(_O, capabilities=_O.capabilities - _SEES),
    "o4-mini": _O,
    "gpt-oss": Family(_OPEN | {"JSON_SCHEMA", "REASONING"}, 131_072, None, _LOW, quiet=False),
    "text-embedding-3-small": Family(frozenset({"EMBEDDING"}), 8191, dimensions=1536),
    "text-embedding-3-large": Family(frozenset({"EMBEDDING"}), 8191, dimensions=3072),
    "text-embedding-ada-002": Family(frozenset({"EMBEDDING"}), 8191, dimensions=1536),
    "nomic-embed-text": Family(frozenset({"EMBEDDING"}), 8192, dimensions=768),
    "mistral-embed": Family(frozenset({"EMBEDDING"}), 8192, dimensions=1024),
    "claude-3-haiku": _CLAUDE_3,
    "claude-3-opus": _CLAUDE_3,
    "claude-3-5-haiku": _CLAUDE_35,
    "claude-3-5-sonnet": _CLAUDE_35,
    "claude-3-7-sonnet": _CLAUDE_4,
    "claude-sonnet-4": _CLAUDE_4,
    "claude-sonnet-4-0": _CLAUDE_4,
    "claude-opus-4": replace(_CLAUDE_4, max_output=32_000),
    "claude-opus-4-0": replace(_CLAUDE_4, max_output=32_000),
    "claude-opus-4-1": replace(_CLAUDE_45, max_output=32_000),
    "claude-sonnet-4-5": _CLAUDE_45,
    "claude-haiku-4-5": _CLAUDE_45,
    "claude-opus-4-5": _CLAUDE_45,
    "claude-sonnet-4-6": replace(_CLAUDE_46, max_output=64_000),
    "claude-opus-4-6": _CLAUDE_46,
    "claude-opus-4-7": _CLAUDE_47,
    "claude-opus-4-8": _CLAUDE_47,
    "claude-opus-5": _CLAUDE_47,
    "claude-opus-5-5": _ALWAYS,
    "claude-sonnet-5": _CLAUDE_47,
    "claude-sonnet-5-5": _CLAUDE_47,
    "claude-haiku-5-5": _CLAUDE_47,
    "claude-fable": _ALWAYS,
    "claude-mythos": _ALWAYS,
    "deepseek-chat": Family(_OPEN | {"PROMPT_CACHE"}, 131_072),
    "deepseek-reasoner": Family(_OPEN | {"REASONING", "PROMPT_CACHE"}, 131_072),
    "deepseek-r1": Family(frozenset({"TEXT", "REASONING"}), 131_072),
    "glm-4.5": Family(_OPEN | {"REASONING", "PROMPT_CACHE"}, 131_072, 98_304),
    "glm-4.6": Family(_OPEN | {"REASONING", "PROMPT_CACHE"}, 200_000, 131_072),
    "glm-4.7": Family(_OPEN | {"REASONING", "PROMPT_CACHE"}, 200_000, 131_072),
    "llama-3.3-70b": Family(_OPEN, 131_072),
    "llama-3.1": Family(_OPEN, 131_072),
    "llama-4": Family(_OPEN | {"IMAGE_INPUT"}),
    "qwen3": Family(_OPEN | {"REASONING"}),
    "qwen3-coder": Family(_OPEN),
    "mistral-large": Family(_OPEN | {"JSON_SCHEMA"}),
    "mistral-small": Family(_OPEN | {"JSON_SCHEMA"}),
    "magistral": Family(_OPEN | {"JSON_SCHEMA", "REASONING"}),
    "gemini-2.5": Family(_OPEN | {"JSON_SCHEMA", "IMAGE_INPUT", "AUDIO_INPUT", "DOCUMENT_INPUT"}, 1_048_576),
}

# `claude-opus-4-1`, `claude-3-7-sonnet`; a date after the name is not a version.
_CLAUDE_NAME = re.compile(
    r"claude-(?:(?P<old>\d)-(?:(?P<old_minor>\d)-)?)?[a-z]+(?:-(?P<major>\d)(?!\d)(?:-(?P<minor>\d)(?!\d))?)?"
)
# What makes a name another version than the one it begins with: `gpt-4` is not `gpt-4.5`.
_OTHER_VERSION = re.compile(r"\d|\.\d|-\d(?!\d)")
_NEWEST_CLAUDE = (4, 7)


@lru_cache(maxsize=1024)
def family(model: str) -> Family:
    """What is known of a model; ``UNKNOWN`` when nothing is."""
    name = model.rpartition("/")[2].lower()
    if name.startswith("claude-"):
        name = name.replace(".", "-")
    fitting = [prefix for prefix in _FAMILIES if _fits(name, prefix)]
    if fitting:
        return _FAMILIES[max(fitting, key=len)]
    version = _claude_version(name)
    if version is not None and version >= _NEWEST_CLAUDE:
        # Newer than this table: as those before it in what it takes, unknown in its sizes.
        return replace(_CLAUDE_47, context_window=None, max_output=None)
    return UNKNOWN


def _fits(name: str, prefix: str) -> bool:
    rest = name[len(prefix) :]
    return name.startswith(prefix) and not (prefix[-1].isdigit() and _OTHER_VERSION.match(rest))


def _claude_version(name: str) -> tuple[int, int] | None:
    found = _CLAUDE_NAME.match(name)
    if found is None:
        return None
    major, minor = found["major"] or found["old"], found["minor"] or found["old_minor"]
    return (int(major), int(minor or 0)) if major else None
