"""Which models of which providers a name means, and in which order they are asked.

A name is an alias or `provider/model`. An alias has targets, in order or
weighted; a prompt may add fallbacks, which are asked after them.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from janus_inference.model import Routing
from janus_kit.errors import InvalidArgument

MAX_MODEL_CHARS = 256
_NOTHING = Routing()


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


@dataclass(frozen=True, slots=True)
class Alias:
    """Names of targets, each with its share of first attempts (all 0: in order), and when to hedge, in seconds."""

    targets: tuple[tuple[str, int], ...]
    hedge_after: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The targets in order."""
        return tuple(name for name, _ in self.targets)


@dataclass(frozen=True, slots=True)
class Route:
    """Targets in the order in which they are asked, each once, and when to hedge, in seconds.

    ``means``: what was asked for, as `provider/model` and, of an alias by
    weight, its shares; the same for every draw.
    """

    targets: tuple[Target, ...]
    hedge_after: float | None = None
    means: tuple[str, ...] = ()


class Routes:
    """Names and what they mean."""

    def __init__(
        self,
        providers: Mapping[str, ProviderModels],
        aliases: Mapping[str, Alias],
        default: str,
        default_embedding: str = "",
        *,
        draw: random.Random | None = None,
    ) -> None:
        self._providers = providers
        self._aliases = aliases
        self._default = default
        self._default_embedding = default_embedding
        self._draw = draw or random.Random()  # noqa: S311 - it shares load, it guards nothing

    def route(self, name: str, asked: Routing = _NOTHING, field: str = "prompt.model") -> Route:
        """The targets of a prompt; an empty name is the default. Raises MODEL_NOT_FOUND."""
        name = name or self._default
        alias = self._aliases.get(name)
        names = self._ordered(alias) if alias is not None else [name]
        targets = [self._generative(each, field) for each in names]
        means = _means(alias) if alias is not None else names
        for index, fallback in enumerate(asked.fallbacks):
            path = f"prompt.routing.fallbacks[{index}]"
            known = self._aliases.get(fallback)
            targets += [self._generative(each, path) for each in (self._ordered(known) if known else [fallback])]
            means = [*means, *(_means(known) if known else [fallback])]
        hedge = asked.hedge_after if asked.hedge_after is not None else (alias.hedge_after if alias else None)
        return Route(tuple(dict.fromkeys(targets)), hedge, tuple(means))

    def embedding(self, name: str, field: str = "model") -> Target:
        """The target of an embedding. Raises MODEL_NOT_FOUND."""
        if not name and not self._default_embedding:
            raise _not_found(name, field, "no model for embedding is configured")
        name = name or self._default_embedding
        alias = self._aliases.get(name)
        # Vectors of different models cannot be compared, so an alias has one meaning here: its first target.
        target = self._target(alias.names[0] if alias else name, field)
        models = self._providers[target.provider]
        if target.model in models.generative or not (models.open_ended or target.model in models.embedding):
            raise _not_found(name, field, "is not a model for embedding")
        return target

    def _generative(self, name: str, field: str) -> Target:
        target = self._target(name, field)
        if target.model in self._providers[target.provider].embedding:
            raise _not_found(name, field, "is a model for embedding; this call needs one that answers")
        return target

    def _ordered(self, alias: Alias) -> Sequence[str]:
        """In order, or drawn by weight one after the other; those without a share come last."""
        if not any(weight for _, weight in alias.targets):
            return alias.names
        left = {name: weight for name, weight in alias.targets if weight}
        order = []
        while left:
            (drawn,) = self._draw.choices(list(left), weights=list(left.values()))
            order.append(drawn)
            del left[drawn]
        return [*order, *(name for name, weight in alias.targets if not weight)]

    def _target(self, name: str, field: str) -> Target:
        provider, slash, model = name.partition("/")
        known = self._providers.get(provider)
        if known is None or not slash or not model:
            raise _not_found(name, field, "must be a configured alias or provider/model")
        if not known.open_ended and model not in known.generative | known.embedding:
            raise _not_found(name, field, f"provider '{provider}' has no such model configured")
        return Target(provider, model)


def _means(alias: Alias) -> Sequence[str]:
    return [f"{name} {weight}" if weight else name for name, weight in alias.targets]


def _not_found(name: str, field: str, rule: str) -> InvalidArgument:
    return InvalidArgument(field, rule, reason="MODEL_NOT_FOUND", metadata={"model": name})
