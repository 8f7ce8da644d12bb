"""Which model of which provider a name means: the one place that decides.

A name is an alias or `provider/model`. This version asks the first target of
an alias and no other; falling back, retrying and hedging will begin here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from janus_kit.errors import InvalidArgument

MAX_MODEL_CHARS = 256


@dataclass(frozen=True, slots=True)
class ProviderModels:
    """The models of one provider: those listed, and whether others can be asked as well."""

    generative: frozenset[str]
    embedding: frozenset[str]
    open_ended: bool


@dataclass(frozen=True, slots=True)
class Target:
    """One model of one provider."""

    provider: str
    model: str

    @property
    def name(self) -> str:
        """`provider/model`."""
        return f"{self.provider}/{self.model}"


class Routes:
    """Names and what they mean."""

    def __init__(
        self,
        providers: Mapping[str, ProviderModels],
        aliases: Mapping[str, tuple[str, ...]],
        default: str,
        default_embedding: str = "",
    ) -> None:
        self._providers = providers
        self._aliases = aliases
        self._default = default
        self._default_embedding = default_embedding

    def generative(self, name: str, field: str = "prompt.model") -> Target:
        """The target of a prompt; an empty name is the default. Raises MODEL_NOT_FOUND."""
        target = self._target(name or self._default, field)
        models = self._providers[target.provider]
        if target.model in models.embedding:
            raise _not_found(name, field, "is a model for embedding; this call needs one that answers")
        return target

    def embedding(self, name: str, field: str = "model") -> Target:
        """The target of an embedding. Raises MODEL_NOT_FOUND."""
        if not name and not self._default_embedding:
            raise _not_found(name, field, "no model for embedding is configured")
        target = self._target(name or self._default_embedding, field)
        models = self._providers[target.provider]
        if target.model in models.generative or not (models.open_ended or target.model in models.embedding):
            raise _not_found(name, field, "is not a model for embedding")
        return target

    def _target(self, name: str, field: str) -> Target:
        resolved = self._aliases.get(name, (name,))[0]
        provider, slash, model = resolved.partition("/")
        known = self._providers.get(provider)
        if known is None or not slash or not model:
            raise _not_found(name, field, "must be a configured alias or provider/model")
        if not known.open_ended and model not in known.generative | known.embedding:
            raise _not_found(name, field, f"provider '{provider}' has no such model configured")
        return Target(provider, model)


def _not_found(name: str, field: str, rule: str) -> InvalidArgument:
    return InvalidArgument(field, rule, reason="MODEL_NOT_FOUND", metadata={"model": name})
