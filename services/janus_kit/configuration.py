"""Loading of settings: file < secrets < environment < arguments, each value's origin kept.

The sources are pydantic-settings' own; what is added here is that a key nobody
knows is an error wherever it stands, and that every value can say where it
came from. Nothing reads the environment after start.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from janus_kit.configuration_sources import (
    ALIASES,
    KeyPath,
    NamedValues,
    model_at,
    nearest,
    read_file,
    secret_files,
)

_Model = TypeVar("_Model", bound=BaseModel)


class SettingsError(Exception):
    """Settings that cannot be used; the text lists every problem, one a line."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Loaded:
    """The merged settings, one model a section, and where each value came from."""

    models: Mapping[str, BaseModel]
    origins: Mapping[str, str] = field(repr=False)

    def __getitem__(self, section: str) -> Any:
        return self.models[section]

    def section(self, name: str, model: type[_Model]) -> _Model:
        """The section, typed. Raises TypeError when it is of another model."""
        found = self.models[name]
        if not isinstance(found, model):
            raise TypeError(f"section {name} is not a {model.__name__}")
        return found

    def origin(self, path: str) -> str:
        """``default``, ``file``, ``secret``, ``environment JANUS_…`` or ``argument``."""
        parts = tuple(path.split("."))
        for length in range(len(parts), 0, -1):
            origin = self.origins.get(".".join(parts[:length]))
            if origin is not None:
                return origin
        return "default"

    def masked(self) -> dict[str, Any]:
        """The values as plain data, secrets as asterisks; safe to print."""
        return {name: model.model_dump(mode="json") for name, model in self.models.items()}


def load(
    sections: Mapping[str, type[BaseModel]],
    *,
    file: Path | None = None,
    environ: Mapping[str, str] = MappingProxyType({}),
    secrets_dir: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    elsewhere: Collection[str] = (),
    aliases: Mapping[str, str] = ALIASES,
) -> Loaded:
    """Merge all sources over the defaults and validate the result.

    ``overrides`` are nested like the file, or flat with dotted paths. Sections
    named in ``elsewhere`` belong to other processes that share the file and
    the environment; they are skipped. Raises SettingsError.
    """
    problems: list[str] = []
    merged: dict[str, Any] = {name: {} for name in sections}
    origins: dict[str, str] = {}

    def add(values: Mapping[str, Any], origin: Callable[[KeyPath], str]) -> None:
        for path, value in _leaves(values):
            if path[0] in elsewhere:
                continue
            if path[0] not in sections:
                near = nearest(path[0], sections)
                problems.append(f"{path[0]}: unknown section{near} (from {origin(path)})")
                continue
            if len(path) > 1:
                _put(merged, path, value)
                origins[".".join(path)] = origin(path)
            elif value != {}:
                problems.append(f"{path[0]}: must be a mapping of keys (from {origin(path)})")

    add(read_file(sections, file, problems), lambda path: "file")
    for label, names in (
        ("secret", secret_files(secrets_dir, aliases, problems)),
        ("environment", environ),
    ):
        named = NamedValues(label, names, sections=sections, elsewhere=elsewhere, aliases=aliases, problems=problems)
        add(named.values(), named.origin)
    add(_nested(overrides or {}), lambda path: "argument")

    models: dict[str, BaseModel] = {}
    for name, model in sections.items():
        try:
            models[name] = model.model_validate(merged[name])
        except ValidationError as error:
            loaded = Loaded({}, origins)
            problems += [_problem(name, model, each, loaded) for each in error.errors()]
    if problems:
        raise SettingsError(problems)
    return Loaded(MappingProxyType(models), MappingProxyType(origins))


def _problem(section: str, model: type[BaseModel], error: Any, loaded: Loaded) -> str:
    path = tuple(str(part) for part in error["loc"])
    dotted = ".".join((section, *path))
    origin = loaded.origin(dotted)
    source = "" if origin == "default" else f" (from {origin})"
    if error["type"] == "extra_forbidden":
        owner = model_at(model, path[:-1])
        near = nearest(path[-1], owner.model_fields) if owner is not None else ""
        return f"{dotted}: unknown key{near}{source}"
    # Pydantic's word for a rule that was written as a plain ValueError.
    rule = error["msg"].removeprefix("Value error, ")
    return f"{dotted}: {rule}{source}"


def _leaves(values: Mapping[str, Any], above: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    for name, value in values.items():
        path = (*above, str(name))
        if isinstance(value, BaseModel):
            value = value.model_dump(exclude_unset=True)
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, path)
        else:
            yield path, value


def _put(tree: dict[str, Any], path: KeyPath, value: Any) -> None:
    for part in path[:-1]:
        below = tree.get(part)
        if not isinstance(below, dict):
            below = tree[part] = {}
        tree = below
    tree[path[-1]] = value


def _nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in overrides.items():
        path = tuple(name.split("."))
        if isinstance(value, Mapping):
            for below, leaf in _leaves(cast(Mapping[str, Any], value), path):
                _put(tree, below, leaf)
        else:
            _put(tree, path, value)
    return tree
