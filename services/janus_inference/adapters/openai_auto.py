"""OpenAI by whichever of its two APIs can say what a prompt asks."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager

from janus_inference.dialects.openai_responses_request import LEAST_OUTPUT_TOKENS
from janus_inference.events import ProviderEvent
from janus_inference.model import Audio, Prompt
from janus_inference.ports import Ask, Provider

# Options that only Chat Completions has.
_CHAT_OPTIONS = frozenset(
    {"audio", "logit_bias", "modalities", "prediction", "reasoning_effort", "verbosity", "web_search_options"}
)


class OpenAIAuto:
    """A ``Provider`` that uses Responses, and Chat Completions for what only that has.

    Reasoning and the blocks of server-side tools survive a conversation in
    Responses alone, so it comes first.
    """

    def __init__(self, responses: Provider, chat: Provider) -> None:
        self._responses, self._chat = responses, chat

    def dialect(self, ask: Ask) -> str:
        return self._for(ask).dialect(ask)

    def stream(self, ask: Ask) -> AbstractAsyncContextManager[AsyncIterator[Sequence[ProviderEvent]]]:
        return self._for(ask).stream(ask)

    def _for(self, ask: Ask) -> Provider:
        needs_chat = needs_chat_completions(ask.prompt) or bool(_CHAT_OPTIONS & ask.options.keys())
        return self._chat if needs_chat else self._responses

    async def warm(self) -> None:
        await self._responses.warm()
        await self._chat.warm()

    async def close(self) -> None:
        await self._responses.close()
        await self._chat.close()


def needs_chat_completions(prompt: Prompt) -> bool:
    """Whether a prompt asks for something that Responses has no field for."""
    given, most = prompt.sampling, prompt.max_output_tokens
    return (
        bool(prompt.stop)
        or any(value is not None for value in (given.seed, given.frequency_penalty, given.presence_penalty))
        or (most is not None and most < LEAST_OUTPUT_TOKENS)
        or any(isinstance(part, Audio) for message in prompt.messages for part in message.parts)
    )
