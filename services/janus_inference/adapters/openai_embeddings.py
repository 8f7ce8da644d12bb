"""The OpenAI-style embedding endpoint, which many servers have."""

import base64
import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from janus_inference import accounting
from janus_inference.adapters.openai_client import OpenAIClient
from janus_inference.adapters.upstream import whole_answer
from janus_inference.dialects.openai_chat_stream import refused_within
from janus_inference.events import Usage
from janus_inference.model import EmbedPurpose
from janus_inference.ports import Stopwatch, Vectors
from janus_inference.profiles import ChatProfile
from janus_inference.provider_errors import ProviderFailure, classify, not_configured, unusable

_MAX_BODY_BYTES = 256 * 1024 * 1024
_CONNECT_TIMEOUT_S = 5.0
# The status of an error that does not tell its own.
_UNTOLD = 500


class OpenAIEmbeddings:
    """An ``Embedder``; shares its client with the chat of the same provider."""

    def __init__(
        self, name: str, client: OpenAIClient, profile: ChatProfile, *, has_key: bool, needs_key: bool
    ) -> None:
        self._name = name
        self._client = client
        self._profile = profile
        self._usable = has_key or not needs_key

    @property
    def most_inputs(self) -> int:
        return self._profile.embed_inputs

    @property
    def most_tokens(self) -> int:
        return self._profile.embed_tokens

    async def embed(
        self,
        model: str,
        inputs: Sequence[str],
        dimensions: int | None,
        purpose: EmbedPurpose | None,
        stopwatch: Stopwatch,
    ) -> Vectors:
        if not self._usable:
            raise not_configured(self._name)
        body: dict[str, Any] = {"model": model, "input": list(inputs)}
        if dimensions is not None:
            body["dimensions"] = dimensions
        # Base64 is a quarter of the size.
        body["encoding_format"] = "base64" if self._profile.base64_vectors else "float"
        if purpose is not None and self._profile.purpose_field:
            body[self._profile.purpose_field] = self._profile.purposes[purpose.value]
        answer = await whole_answer(
            self._client,
            "/embeddings",
            body,
            provider=self._name,
            model=model,
            stopwatch=stopwatch,
            connect_timeout=_CONNECT_TIMEOUT_S,
            most_bytes=_MAX_BODY_BYTES,
        )
        try:
            return _vectors(answer)
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
            raise self._failed(answer, model) from None

    def _failed(self, answer: Mapping[str, Any], model: str) -> ProviderFailure:
        """What an answer without vectors is: an error that says its kind, or all that these texts get."""
        said = refused_within(answer["error"]) if answer.get("error") else None
        if said is not None and said.status != _UNTOLD:
            return classify(self._name, model, said)
        return unusable(self._name, "the vectors are not of the expected form")


def _vectors(answer: Mapping[str, Any]) -> Vectors:
    rows = sorted(answer["data"], key=lambda row: row["index"])
    if [row["index"] for row in rows] != list(range(len(rows))):
        raise ValueError("indexes with gaps")
    usage = answer.get("usage")
    said = accounting.openai_usage(usage) if usage else None
    reported = said if said is not None and said.input_tokens else Usage(estimated=True)
    return Vectors(tuple(_vector(row["embedding"]) for row in rows), reported)


def _vector(said: str | list[float]) -> Sequence[float]:
    """Floats, or the base64 of little-endian 32-bit ones."""
    if isinstance(said, list):
        return array("f", said)
    numbers = array("f", base64.b64decode(said, validate=True))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
