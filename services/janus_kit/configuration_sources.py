"""Where settings come from: pydantic-settings' sources, strict about keys nobody knows."""

import difflib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import BaseModel, create_model
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

PREFIX = "JANUS_"
DELIMITER = "__"

# Names that people already have in their environment, and what they set. One
# that sets nothing in the sections at hand is ignored, unlike a JANUS_ name.
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "JANUS_POSTGRES_URL": "postgres.url",
        "JANUS_REDIS_URL": "redis.url",
        "JANUS_CHROMA_URL": "memory.chroma_url",
        "OPENAI_API_KEY": "inference.openai_api_key",
        "ANTHROPIC_API_KEY": "inference.anthropic_api_key",
    }
)
# Read by the command line and the process host before there are settings.
RESERVED = frozenset({"JANUS_CONFIG", "JANUS_SECRETS_DIR", "JANUS_DATA", "JANUS_REVISION"})

KeyPath = tuple[str, ...]
Sections = Mapping[str, type[BaseModel]]


def read_file(sections: Sections, file: Path | None, problems: list[str]) -> Mapping[str, Any]:
    """The YAML file's sections; what is wrong with it is added to ``problems``."""
    if file is None:
        return {}
    if not file.is_file():
        problems.append(f"{file}: no such file")
        return {}
    try:
        text = file.read_text(encoding="utf-8")
        if not text.strip():
            # More often half written than meant; nothing at all can be said as {}.
            problems.append(f"{file}: is empty")
            return {}
        # YAML would let the last one win without a word.
        repeated = [f"{file} line {line}: '{key}' is there twice" for key, line in repeated_keys(text)]
        if repeated:
            problems += repeated
            return {}
        data: Any = YamlConfigSettingsSource(_settings_class(sections), yaml_file=file).yaml_data
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark is not None else ""
        problems.append(f"{file}{where}: not valid YAML")
        return {}
    except (OSError, UnicodeDecodeError):
        problems.append(f"{file}: cannot be read")
        return {}
    except (TypeError, ValueError, AttributeError):  # what a root that is no mapping comes to
        data = None
    if not isinstance(data, dict):
        problems.append(f"{file}: must hold a mapping of sections")
        return {}
    return {str(name): {} if section is None else section for name, section in data.items()}


def repeated_keys(text: str) -> Iterator[tuple[str, int]]:
    """Keys that a mapping has more than once, with the line where they are repeated. Raises YAMLError."""
    seen = set[int]()
    follow = [yaml.compose(text, Loader=yaml.SafeLoader)]
    while follow:
        node = follow.pop()
        # An alias leads to the same node again, maybe from within it.
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            follow += reversed(node.value)
        elif isinstance(node, yaml.MappingNode):
            keys = set[str]()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in keys:
                        yield key.value, key.start_mark.line + 1
                    keys.add(key.value)
            follow += [value for _, value in reversed(node.value)]


def secret_files(directory: Path | None, aliases: Mapping[str, str], problems: list[str]) -> Mapping[str, str]:
    """Files of a Docker or Kubernetes secrets directory, named like environment variables.

    Such a directory may hold other programs' secrets: names that are not ours
    are not read.
    """
    if directory is None:
        return {}
    if not directory.is_dir():
        problems.append(f"{directory}: no such secrets directory")
        return {}
    found: dict[str, str] = {}
    try:
        for path in secret_paths(directory, aliases):
            try:
                found[path.name.upper()] = path.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError):
                problems.append(f"{path}: cannot be read as text")
    except OSError:
        problems.append(f"{directory}: cannot be read")
    return found


def secret_paths(directory: Path, aliases: Mapping[str, str]) -> list[Path]:
    """The files of a secrets directory that are named like our variables. Raises OSError."""
    return [
        path
        for path in sorted(directory.iterdir())
        if ((name := path.name.upper()).startswith(PREFIX) or name in aliases) and path.is_file()
    ]


class NamedValues:
    """Names like JANUS_SECTION__KEY with their texts: the environment, or a secrets directory."""

    def __init__(
        self,
        label: str,
        names: Mapping[str, str],
        *,
        sections: Sections,
        elsewhere: Collection[str],
        aliases: Mapping[str, str],
        problems: list[str],
    ) -> None:
        self._label = label
        self._sections = sections
        self._known: dict[str, str] = {}
        self._alias_of: dict[KeyPath, str] = {}
        given = {name.upper() for name in names}
        for name, text in names.items():
            upper = name.upper()
            section = upper.removeprefix(PREFIX).split(DELIMITER)[0].lower()
            if upper in aliases:
                self._add_alias(name, text, tuple(aliases[upper].split(".")), given)
            elif not upper.startswith(PREFIX) or upper in RESERVED or section in elsewhere:
                continue
            elif section in sections:
                self._known[upper] = text
            else:
                near = nearest(section, sections)
                problems.append(f"{name}: unknown section '{section}'{near} (from {label})")

    def values(self) -> Mapping[str, Any]:
        """Nested as in the file, by pydantic-settings' rules for an environment."""
        return _NamesSource(_settings_class(self._sections), self._known)()

    def origin(self, path: KeyPath) -> str:
        """What set the value at that path."""
        if self._label == "secret":
            return self._label
        # A variable may hold a whole JSON object: the longest name that exists set it.
        for length in range(len(path), 0, -1):
            if path[:length] in self._alias_of:
                return f"{self._label} {self._alias_of[path[:length]]}"
            name = _name(path[:length])
            if name in self._known:
                return f"{self._label} {name}"
        return self._label

    def _add_alias(self, name: str, text: str, path: KeyPath, given: Collection[str]) -> None:
        """The full name wins over the alias when both are there; an empty alias sets nothing."""
        model = self._sections.get(path[0])
        if text and model is not None and _has_field(model, path[1:]) and _name(path) not in given:
            self._known[_name(path)] = text
            self._alias_of[path] = name


class _NamesSource(EnvSettingsSource):
    """Names and texts from a given mapping instead of the process's environment."""

    def __init__(self, settings: type[BaseSettings], names: Mapping[str, str]) -> None:
        self._names = names
        super().__init__(settings)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): text for name, text in self._names.items()}


def nearest(name: str, known: Collection[str]) -> str:
    """``, did you mean 'x'?`` when something is near, else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean '{near[0]}'?" if near else ""


def model_at(model: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    """The nested model that a path leads to, looking through Optional and containers."""
    current: type[BaseModel] | None = model
    for part in path:
        if current is None:
            return None
        known = current.model_fields.get(part)
        if known is None:
            continue  # a key of a mapping or an index of a list: the model stays the same
        current = next(iter(_models_in(known.annotation)), None)
    return current


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


def _has_field(model: type[BaseModel], path: KeyPath) -> bool:
    owner = model_at(model, path[:-1])
    return owner is not None and path[-1] in owner.model_fields


def _name(path: KeyPath) -> str:
    return PREFIX + DELIMITER.join(path).upper()


def _settings_class(sections: Sections) -> type[BaseSettings]:
    fields: dict[str, Any] = {name: (model, None) for name, model in sections.items()}
    settings = create_model("AllSettings", __base__=BaseSettings, **fields)
    settings.model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter=DELIMITER, extra="allow")
    return settings
