"""Bring a database up to date and end: `python -m janus_kit.migrations janus_inference janus_memory …`.

For deployments where services connect as a user that may not change schemas.
The database is the section ``postgres`` of the settings, with a user that may.
"""

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from janus_kit.errors import Unavailable
from janus_kit.migrations import MigrationError, migrate
from janus_kit.settings import Loaded, PostgresSettings, Settings, SettingsError, TelemetrySettings, load
from janus_kit.telemetry import logging

SECTIONS: Mapping[str, type[Settings]] = {"postgres": PostgresSettings, "telemetry": TelemetrySettings}
# Sections of the processes that share a configuration with this one.
ELSEWHERE = ("server", "redis", "inference", "memory", "orchestration", "edge")
WAIT_S = 60.0


def main(packages: list[str]) -> int:
    """Apply what is missing; returns the exit status."""
    try:
        loaded = _settings()
    except SettingsError as error:
        return _failed(error)
    telemetry = loaded.section("telemetry", TelemetrySettings)
    logging.configure(level=telemetry.log_level, form=telemetry.log_format)
    postgres = loaded.section("postgres", PostgresSettings)
    try:
        applied = asyncio.run(migrate(postgres, packages, wait_s=WAIT_S))
    except (MigrationError, Unavailable, ModuleNotFoundError) as error:
        return _failed(error)
    logging.get_logger(__name__).info("migrated", applied=len(applied))
    return 0


def _settings() -> Loaded:
    file, secrets = os.environ.get("JANUS_CONFIG"), os.environ.get("JANUS_SECRETS_DIR")
    return load(
        SECTIONS,
        file=Path(file) if file else None,
        environ=os.environ,
        secrets_dir=Path(secrets) if secrets else None,
        elsewhere=ELSEWHERE,
    )


def _failed(error: Exception) -> int:
    print(error, file=sys.stderr)  # noqa: T201 - for whoever started it
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
