"""Settings that change while the process runs: on SIGHUP, and when a file that they come from changes.

The settings are read anew from the sources they had at start and validated
whole. What is wrong with them is logged, and the process goes on with what it
had. Sections whose owner registered with ``section(...).on_change`` take
effect at once; a change of anything else is named in a warning, since it takes
effect after a restart.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

from pydantic import BaseModel

from janus_kit.configuration import Loaded, SettingsError, load
from janus_kit.configuration_sources import ALIASES, secret_paths
from janus_kit.lifecycle import Background
from janus_kit.telemetry import metrics
from janus_kit.telemetry.logging import get_logger

_log = get_logger(__name__)

POLL_S = 1.0
"""Time between two looks at the files; a change counts once it was seen twice."""
APPLY_S = 60.0
"""How long a service may take to make itself anew."""
_NAMED = 50  # keys that one log line names

SectionT = TypeVar("SectionT", bound=BaseModel)
# What a mount is given is covariant: whoever follows a section may know it as a wider model.
_GivenT = TypeVar("_GivenT", bound=BaseModel, covariant=True)

Apply = Callable[[SectionT], Awaitable[None]]
# Of each path its device, inode, size and time of change; None where nothing is.
Fingerprint = tuple[tuple[str, tuple[int, int, int, int] | None], ...]


class ReloadSource(Protocol[_GivenT]):
    """What a mount is given, so that new settings of its section reach it."""

    def on_change(self, apply: Callable[[_GivenT], Awaitable[None]], *, fixed: Collection[str] = ()) -> None:
        """Have every later version of the section, valid as a whole, given to ``apply``.

        ``apply`` takes all of it or, raising, nothing: SettingsError says in
        words why, any other exception is logged as a bug; it has APPLY_S
        seconds. Keys in ``fixed`` cannot change while the process runs:
        ``apply`` sees their old values. One ``apply`` a section.
        """
        ...


class Outcome(StrEnum):
    """How a reload ended."""

    APPLIED = "applied"
    REFUSED = "refused"
    UNCHANGED = "unchanged"


@dataclass(frozen=True)
class Sources:
    """Where the settings of a process come from, to be read any number of times.

    ``environ`` is a copy made at the start: a process's environment does not
    change. The other fields are ``load``'s.
    """

    sections: Mapping[str, type[BaseModel]]
    file: Path | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    secrets_dir: Path | None = None
    overrides: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    elsewhere: Collection[str] = ()

    def load(self) -> Loaded:
        """The settings as a process that starts now would have them. Raises SettingsError."""
        return load(
            self.sections,
            file=self.file,
            environ=self.environ,
            secrets_dir=self.secrets_dir,
            overrides=self.overrides,
            elsewhere=self.elsewhere,
        )

    def fingerprint(self) -> Fingerprint:
        """What tells one state of the files from another, without reading them."""
        paths = [] if self.file is None else [self.file]
        if self.secrets_dir is not None:
            paths.append(self.secrets_dir)
            with suppress(OSError):  # gone or not readable: its own entry says so
                paths += secret_paths(self.secrets_dir, ALIASES)
        return tuple((str(path), _state(path)) for path in paths)


class Reloading:
    """The settings of a process from its start to its end. Raises SettingsError when they are wrong at the start."""

    def __init__(self, sources: Sources, *, poll_s: float = POLL_S) -> None:
        self._sources = sources
        self._poll_s = poll_s
        # Taken before reading, so that a change in between is seen.
        self._seen = sources.fingerprint()
        self._candidate = self._seen
        self.loaded = sources.load()
        """The settings at the start."""
        self._current = dict(self.loaded.models)
        self._owners: dict[str, _Owner] = {}
        self._asked = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        metrics.config_last_reload_successful.set(1)
        for outcome in Outcome:
            metrics.config_reloads.labels(outcome)

    def section(self, name: str, model: type[SectionT]) -> ReloadSource[SectionT]:
        """Changes of one section. Raises TypeError when it is of another model."""
        self.loaded.section(name, model)
        return _Section(name, self._owners)

    def request(self) -> None:
        """Read the settings again, whether or not a file changed; what SIGHUP does."""
        self._asked.set()

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Reload within the block whenever there is reason to."""
        background = Background()
        background.start([("configuration", self.run)])
        try:
            yield
        finally:
            await background.stop()

    async def run(self) -> None:
        """Wait for a reason to reload, and do it, for ever."""
        while True:
            try:
                async with asyncio.timeout(self._poll_s):
                    await self._asked.wait()
            except TimeoutError:
                if self.settled():
                    await self.reload("file")
            else:
                self._asked.clear()
                self._candidate = self._seen = self._sources.fingerprint()
                await self.reload("signal")

    def settled(self) -> bool:
        """One look at the files: true once after a change that was there at the last look already.

        A file that is being written changes from look to look and does not count yet.
        """
        before, self._candidate = self._candidate, self._sources.fingerprint()
        if self._candidate == self._seen or self._candidate != before:
            return False
        self._seen = self._candidate
        return True

    async def reload(self, reason: str = "request") -> Outcome:
        """Read, validate and apply. Never raises; ``reason`` is for the log."""
        async with self._one_at_a_time:
            attempt = _Attempt(self._current, self._owners)
            try:
                # Parsing a large file takes longer than a stream may stand still.
                loaded = await asyncio.to_thread(self._sources.load)
            except SettingsError as error:
                attempt.problems += error.problems
            except Exception as error:  # noqa: BLE001 - a reload never ends the process
                # Its text may quote the file.
                attempt.problems.append(f"settings cannot be read: {type(error).__name__}")
            else:
                for name, model in loaded.models.items():
                    await attempt.take(name, model)
            return attempt.end(reason)


@dataclass(frozen=True)
class _Owner:
    """Who a section belongs to, and what of it waits for a restart."""

    apply: Callable[[Any], Awaitable[None]]
    fixed: frozenset[str]


@dataclass(frozen=True)
class _Section(Generic[SectionT]):
    name: str
    owners: dict[str, _Owner] = field(repr=False)

    def on_change(self, apply: Apply[SectionT], *, fixed: Collection[str] = ()) -> None:
        if self.name in self.owners:
            raise ValueError(f"section {self.name} has an owner already")
        self.owners[self.name] = _Owner(apply, frozenset(fixed))


class _Attempt:
    """One reload as it goes on."""

    def __init__(self, current: dict[str, BaseModel], owners: Mapping[str, _Owner]) -> None:
        self.problems: list[str] = []
        self._current = current
        self._owners = owners
        self._applied: list[str] = []
        self._later: list[str] = []

    async def take(self, name: str, model: BaseModel) -> None:
        """Give a section that changed to its owner."""
        current, owner = self._current[name], self._owners.get(name)
        changed = list(differences(current, model, name))
        if owner is None:
            self._later += changed
            return
        fixed = [path for path in changed if path.split(".")[1] in owner.fixed]
        now = [path for path in changed if path not in fixed]
        self._later += fixed
        if not now:
            return
        model = model.model_copy(update={key: getattr(current, key) for key in owner.fixed})
        try:
            async with asyncio.timeout(APPLY_S) as limit:
                await owner.apply(model)
        except SettingsError as error:
            self.problems += error.problems
        except Exception as error:  # noqa: BLE001 - a reload never ends the process
            if isinstance(error, TimeoutError) and limit.expired():
                self.problems.append(f"{name}: could not be applied within {APPLY_S:g} s")
            else:
                _log.error("configuration_not_applied", section=name, exc_info=error)
                self.problems.append(f"{name}: could not be applied ({type(error).__name__})")
        else:
            self._current[name] = model
            self._applied += now

    def end(self, reason: str) -> Outcome:
        """Log and count what came of it."""
        if self._applied:
            _log.info("configuration_applied", reason=reason, changed=_few(self._applied))
        if self._later:
            _log.warning(
                "configuration_needs_restart", detail="takes effect after a restart", changed=_few(self._later)
            )
        if self.problems:
            _log.error(
                "configuration_refused",
                reason=reason,
                detail="the settings from before stay in force",
                problems=_few(self.problems),
            )
            outcome = Outcome.REFUSED
        elif self._applied:
            outcome = Outcome.APPLIED
        else:
            if not self._later:
                _log.info("configuration_unchanged", reason=reason)
            outcome = Outcome.UNCHANGED
        metrics.config_reloads.labels(outcome).inc()
        metrics.config_last_reload_successful.set(outcome is not Outcome.REFUSED)
        return outcome


def differences(before: object, after: object, path: str) -> Iterator[str]:
    """Dotted paths of what differs; never its values, which may be secret."""
    if isinstance(before, BaseModel) and type(before) is type(after):
        for name in type(before).model_fields:
            yield from differences(getattr(before, name), getattr(after, name), f"{path}.{name}")
    elif isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in sorted({*before, *after}):
            if name in before and name in after:
                yield from differences(before[name], after[name], f"{path}.{name}")
            else:
                yield f"{path}.{name}"
    elif before != after:
        yield path


def _state(path: Path) -> tuple[int, int, int, int] | None:
    """Through symbolic links: Kubernetes swaps the folder that a mounted file's link leads to."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _few(texts: list[str]) -> list[str]:
    return texts if len(texts) <= _NAMED else [*texts[:_NAMED], f"and {len(texts) - _NAMED} more"]
