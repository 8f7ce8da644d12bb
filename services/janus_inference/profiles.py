"""What servers and models can do, as data: what differs within one dialect.

A profile never says that a model cannot do something because it is unknown:
then the provider decides.
"""

from dataclasses import dataclass

DEFAULT_MAX_OUTPUT_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class ChatProfile:
    """How a server that speaks Chat Completions differs from the others.

    ``needs_done``: its streams always end with `[DONE]`. ``max_tokens_field``
    is its name for the limit. ``stream_usage``: it understands
    `stream_options`. ``extra_sampling``: it takes `top_k`. ``max_stop``: most
    stop sequences, None for no known limit. ``reasoning_field``: where it takes
    an assistant's earlier reasoning back, empty for nowhere.
    ``base64_vectors``: it sends embeddings as base64 when asked to.
    """

    needs_done: bool = False
    max_tokens_field: str = "max_tokens"
    stream_usage: bool = True
    extra_sampling: bool = True
    max_stop: int | None = None
    reasoning_field: str = ""
    base64_vectors: bool = False


OPENAI = ChatProfile(
    needs_done=True,
    max_tokens_field="max_completion_tokens",
    extra_sampling=False,
    max_stop=4,
    base64_vectors=True,
)

# Servers that are known by the host of their address.
_BY_HOST: tuple[tuple[str, ChatProfile], ...] = (
    ("api.openai.com", OPENAI),
    ("api.deepseek.com", ChatProfile(needs_done=True, extra_sampling=False)),
    ("api.groq.com", ChatProfile(needs_done=True, max_tokens_field="max_completion_tokens", max_stop=4)),
    ("openrouter.ai", ChatProfile(needs_done=True)),
    ("api.z.ai", ChatProfile(needs_done=True, reasoning_field="reasoning_content")),
)


def chat_profile(host: str) -> ChatProfile:
    """The profile of a compatible server, by its host; a careful default when it is not known."""
    for known, profile in _BY_HOST:
        if host == known or host.endswith(f".{known}"):
            return profile
    return ChatProfile()


# Most output tokens by the beginning of the model's name, longest first wins.
_MAX_OUTPUT: tuple[tuple[str, int], ...] = (
    ("claude-3-haiku", 4096),
    ("claude-3-opus", 4096),
    ("claude-3-5-haiku", 8192),
    ("claude-3-5-sonnet", 8192),
    ("claude-3-7-sonnet", 64_000),
    ("claude-opus-4-0", 32_000),
    ("claude-opus-4-1", 32_000),
    ("claude-opus-4-2025", 32_000),
    ("claude-opus-4-5", 64_000),
    ("claude-sonnet-4", 64_000),
    ("claude-haiku-4", 64_000),
)


def max_output_tokens(model: str) -> int | None:
    """Most output tokens of a model; None when it is not known."""
    fitting = [(len(prefix), most) for prefix, most in _MAX_OUTPUT if model.startswith(prefix)]
    return max(fitting)[1] if fitting else None
