"""What servers can do, as data: what differs within one dialect.

A profile never says that a server cannot do something because the server is
unknown: then it is asked, and decides. What models can do is in ``families``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from urllib.parse import urlsplit

from janus_inference.families import family

DEFAULT_MAX_OUTPUT_TOKENS = 4096


class EffortForm(Enum):
    """How a server wants to be told how much to think."""

    WORD = "reasoning_effort"
    """`reasoning_effort: "high"`."""
    OBJECT = "reasoning"
    """`reasoning: {"effort": "high"}`, or `{"max_tokens": 2000}`."""
    SWITCH = "thinking"
    """`thinking: {"type": "enabled"}` or `"disabled"`, whatever the effort."""
    TEMPLATE = "chat_template_kwargs"
    """Arguments of the model's chat template."""
    WORD_TEMPLATE = "reasoning_effort, or chat_template_kwargs"
    """The word; and the template's argument for not thinking at all."""


class Documents(Enum):
    """Whether a server takes documents, as parts of type `file`."""

    NO = "no"
    BYTES = "bytes"
    BYTES_OR_ADDRESS = "bytes or address"


@dataclass(frozen=True, slots=True)
class ChatProfile:
    """How a server that speaks Chat Completions differs from the others.

    ``needs_done``: its streams always end with `[DONE]`. ``max_tokens_field``
    and ``seed_field`` are its names for those. ``stream_usage``: it understands
    `stream_options`. ``extra_sampling``: it takes `top_k`. ``logprobs``: it
    takes `top_logprobs`. ``max_stop``: most stop sequences, None for no known
    limit. ``reasoning_field``: where it takes an assistant's earlier reasoning
    back, empty for nowhere. ``effort``: see EffortForm; ``effort_words``: its
    own words for models by the beginning of their name. ``json_schema``: an
    answer can be held to a schema. ``strict_tools``: so can arguments of tools.
    ``tool_choice``: it takes one; otherwise none are offered where none may be
    called, and none can be forced.
    ``by_family``: what is known of a model holds at this server. ``documents``
    and ``audio``: it takes such parts. ``cache_control``: it takes prompt-cache
    breakpoints for Anthropic's models; elsewhere caching is automatic.
    ``encrypted_reasoning``: asked to, it gives reasoning encrypted, to be sent
    back. ``base64_vectors``: it sends embeddings as base64 when asked to.
    ``embed_inputs`` and ``embed_tokens``: most of them in one request.
    ``call_id`` and ``call_id_length``: the form of a tool call's id that it
    takes, and the length of one that stands for an id of another form.
    ``purpose_field`` and ``purposes``: where and how it is told what a vector
    is for, empty for nowhere.
    """

    needs_done: bool = False
    max_tokens_field: str = "max_tokens"
    seed_field: str = "seed"
    stream_usage: bool = True
    extra_sampling: bool = True
    logprobs: bool = True
    max_stop: int | None = None
    reasoning_field: str = ""
    effort: EffortForm = EffortForm.WORD
    effort_words: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    json_schema: bool = True
    strict_tools: bool = True
    tool_choice: bool = True
    by_family: bool = False
    documents: Documents = Documents.BYTES
    audio: bool = True
    cache_control: bool = False
    encrypted_reasoning: bool = False
    base64_vectors: bool = False
    embed_inputs: int = 256
    embed_tokens: int = 100_000
    call_id: re.Pattern[str] = re.compile(r".{1,128}", re.DOTALL)
    call_id_length: int = 32
    purpose_field: str = ""
    purposes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


OPENAI = ChatProfile(
    needs_done=True,
    max_tokens_field="max_completion_tokens",
    extra_sampling=False,
    max_stop=4,
    by_family=True,
    encrypted_reasoning=True,
    call_id=re.compile(r".{1,40}", re.DOTALL),
    base64_vectors=True,
    embed_inputs=2048,
    embed_tokens=300_000,
)

PROFILES: Mapping[str, ChatProfile] = MappingProxyType(
    {
        "openai": OPENAI,
        "ollama": ChatProfile(
            extra_sampling=False,
            logprobs=False,
            strict_tools=False,
            tool_choice=False,
            documents=Documents.NO,
            audio=False,
        ),
        "vllm": ChatProfile(effort=EffortForm.WORD_TEMPLATE, documents=Documents.NO, base64_vectors=True),
        "llama.cpp": ChatProfile(effort=EffortForm.TEMPLATE, documents=Documents.NO),
        "lmstudio": ChatProfile(documents=Documents.NO, audio=False),
        "groq": ChatProfile(
            needs_done=True,
            max_tokens_field="max_completion_tokens",
            extra_sampling=False,
            logprobs=False,
            max_stop=4,
            effort_words=MappingProxyType({"qwen": ("none", "default"), "gpt-oss": ("low", "medium", "high")}),
            documents=Documents.NO,
            audio=False,
        ),
        "openrouter": ChatProfile(
            needs_done=True,
            effort=EffortForm.OBJECT,
            documents=Documents.BYTES_OR_ADDRESS,
            cache_control=True,
            encrypted_reasoning=True,
        ),
        "deepseek": ChatProfile(
            needs_done=True,
            extra_sampling=False,
            max_stop=16,
            reasoning_field="reasoning_content",
            effort=EffortForm.SWITCH,
            json_schema=False,
            strict_tools=False,
            documents=Documents.NO,
            audio=False,
        ),
        "zai": ChatProfile(
            needs_done=True,
            extra_sampling=False,
            logprobs=False,
            max_stop=1,
            reasoning_field="reasoning_content",
            effort=EffortForm.SWITCH,
            json_schema=False,
            strict_tools=False,
            tool_choice=False,
            documents=Documents.NO,
            audio=False,
        ),
        "together": ChatProfile(needs_done=True, documents=Documents.NO),
        "mistral": ChatProfile(
            needs_done=True,
            seed_field="random_seed",
            stream_usage=False,
            extra_sampling=False,
            logprobs=False,
            documents=Documents.NO,
            audio=False,
            call_id=re.compile(r"[A-Za-z0-9]{9}", re.ASCII),
            call_id_length=9,
            embed_inputs=128,
            embed_tokens=16_000,
        ),
        "jina": ChatProfile(
            purpose_field="task",
            purposes=MappingProxyType({"document": "retrieval.passage", "query": "retrieval.query"}),
        ),
    }
)
"""By the name that a setting `profile` may have."""

# Servers that are known by the host of their address.
_BY_HOST: tuple[tuple[str, str], ...] = (
    ("api.openai.com", "openai"),
    ("api.deepseek.com", "deepseek"),
    ("api.groq.com", "groq"),
    ("openrouter.ai", "openrouter"),
    ("api.z.ai", "zai"),
    ("open.bigmodel.cn", "zai"),
    ("api.together.xyz", "together"),
    ("api.together.ai", "together"),
    ("api.mistral.ai", "mistral"),
    ("api.jina.ai", "jina"),
)
# Ports that no other server uses by default. 8000 and 8080, those of vLLM and
# llama.cpp, are anybody's: there the setting `profile` has to say it.
_BY_PORT = {11434: "ollama", 1234: "lmstudio"}


def chat_profile(address: str) -> ChatProfile:
    """The profile of a compatible server, by its address or its host; a careful default when it is not known."""
    at = urlsplit(address if "://" in address else f"//{address}")
    host = at.hostname or ""
    for known, name in _BY_HOST:
        if host == known or host.endswith(f".{known}"):
            return PROFILES[name]
    return PROFILES[_BY_PORT[at.port]] if at.port in _BY_PORT else ChatProfile()


def capabilities(kind: str, model: str) -> frozenset[str]:
    """What a model of a provider of this kind can do, in the contract's words; empty when unknown."""
    if kind == "scripted":
        return frozenset({"TEXT", "TOOLS", "PARALLEL_TOOLS", "JSON"})
    return family(model).capabilities


def context_window(model: str) -> int | None:
    """Most tokens of prompt and answer together; None when it is not known."""
    return family(model).context_window


def max_output_tokens(model: str) -> int | None:
    """Most output tokens of a model; None when it is not known."""
    return family(model).max_output
