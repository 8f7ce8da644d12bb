"""What inference needs from the outside, as small protocols."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from janus_inference.events import ProviderEvent, Usage
from janus_inference.model import Prompt


class Stopwatch(Protocol):
    """Told by a provider when waiting for it begins and ends, so that the rest is Janus's own time."""

    def sent(self) -> None:
        """The request is on its way; the last call counts."""
        ...

    def heard(self) -> None:
        """The provider said something."""
        ...


@dataclass(frozen=True, slots=True)
class Ask:
    """One attempt: a prompt for one model of one provider.

    ``connect_timeout`` is in seconds. ``options`` are further fields of the
    provider's request, already parsed.
    """

    prompt: Prompt
    model: str
    stopwatch: Stopwatch
    connect_timeout: float
    options: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))


class Provider(Protocol):
    """One upstream model API.

    ``stream`` is a context manager: leaving the block, for any reason, closes
    the upstream connection, because a cancelled call must not keep spending
    tokens. Inside, each item is a batch: all that the provider had said and
    nobody had read, at least one event. Nothing is read ahead of the consumer
    but what the transport's bounded buffer holds, so a slow consumer slows the
    provider down. The last batch ends with Stopped; a stream that breaks or
    ends without it raises ProviderFailure. A prompt that the provider or the
    model cannot serve raises InvalidArgument on entering the block.
    """

    @property
    def dialect(self) -> str:
        """Name of the wire format, for metrics."""
        ...

    def stream(self, ask: Ask) -> AbstractAsyncContextManager[AsyncIterator[Sequence[ProviderEvent]]]: ...

    async def warm(self) -> None:
        """Do now what the first call would otherwise wait for."""
        ...

    async def close(self) -> None:
        """Close idle connections; the provider is not used afterwards."""
        ...


@dataclass(frozen=True, slots=True)
class Vectors:
    """Vectors in the order of the inputs, all of one length."""

    values: tuple[Sequence[float], ...]
    usage: Usage


class Embedder(Protocol):
    """An upstream API that turns texts into vectors."""

    async def embed(self, model: str, inputs: Sequence[str], dimensions: int | None) -> Vectors:
        """One vector an input. Raises ProviderFailure."""
        ...
