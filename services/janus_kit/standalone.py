"""One service as a process of its own: ``python -m janus_<service>``."""

import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from janus_kit.auth.scopes import UndeclaredScopeError
from janus_kit.configuration import SettingsError
from janus_kit.errors import JanusError
from janus_kit.migrations import MigrationError
from janus_kit.mount import Mount
from janus_kit.reload import Reloading, Sources
from janus_kit.server import run
from janus_kit.settings import (
    PostgresSettings,
    RedisSettings,
    ServerSettings,
    Settings,
    TelemetrySettings,
)
from janus_kit.telemetry.tracing import TelemetryError
from janus_kit.transport import ListenError

Building = Callable[[Reloading], AbstractAsyncContextManager[Mount]]

_COMMON: Mapping[str, type[Settings]] = {
    "server": ServerSettings,
    "telemetry": TelemetrySettings,
    "postgres": PostgresSettings,
    "redis": RedisSettings,
}
# All services may share one file and one environment; each reads its own section.
_SECTIONS = ("inference", "memory", "orchestration", "edge")


def main(name: str, settings: type[Settings], build: Building) -> None:
    """Load settings, build the service's mount and serve it until SIGTERM.

    ``name`` is the service's section; ``build`` gets all sections, as they are
    at the start (``loaded``) and with a way to follow their changes. The file
    is named by JANUS_CONFIG, the secrets directory by JANUS_SECRETS_DIR. What
    is wrong with them is said in words, with exit code 2. SIGHUP reads them again.
    """

    @asynccontextmanager
    async def mounting() -> AsyncIterator[Sequence[Mount]]:
        async with build(reloading) as mount, reloading.watching():
            yield (mount,)

    try:
        reloading = Reloading(
            Sources(
                {**_COMMON, name: settings},
                file=_path("JANUS_CONFIG"),
                environ=dict(os.environ),
                secrets_dir=_path("JANUS_SECRETS_DIR"),
                elsewhere=[section for section in _SECTIONS if section != name],
            )
        )
        loaded = reloading.loaded
        run(
            mounting,
            loaded.section("server", ServerSettings),
            loaded.section("telemetry", TelemetrySettings),
            name=f"janus-{name}",
            on_hangup=reloading.request,
        )
    except (
        SettingsError,
        ListenError,
        MigrationError,
        UndeclaredScopeError,
        TelemetryError,
        JanusError,
    ) as error:
        sys.stderr.write(f"janus-{name}: {error}\n")
        raise SystemExit(2) from None


def _path(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None
