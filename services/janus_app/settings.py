"""All sections that a whole mesh has, and where their values come from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from janus_app.embedded import default_data_folder
from janus_edge.settings import EdgeSettings
from janus_inference.settings import InferenceSettings
from janus_kit.reload import Sources
from janus_kit.settings import (
    Loaded,
    PostgresSettings,
    RedisSettings,
    ServerSettings,
    Settings,
    SettingsError,
    TelemetrySettings,
)
from janus_memory.settings import MemorySettings
from janus_orchestration.settings import OrchestrationSettings

SECTIONS: Mapping[str, type[Settings]] = {
    "postgres": PostgresSettings,
    "redis": RedisSettings,
    "server": ServerSettings,
    "telemetry": TelemetrySettings,
    "inference": InferenceSettings,
    "memory": MemorySettings,
    "orchestration": OrchestrationSettings,
    "edge": EdgeSettings,
}

__all__ = ["SECTIONS", "SettingsError", "data_folder", "load_settings", "sources"]


def data_folder(data: Path | None) -> Path:
    """`--data`, else JANUS_DATA, else the user's data folder."""
    if data is not None:
        return data.expanduser().absolute()
    if named := os.environ.get("JANUS_DATA"):
        return Path(named).expanduser().absolute()
    return default_data_folder()


def load_settings(file: Path | None, overrides: Mapping[str, Any]) -> Loaded:
    """Defaults < file < secrets < environment < arguments. Raises SettingsError."""
    return sources(file, overrides).load()


def sources(file: Path | None, overrides: Mapping[str, Any]) -> Sources:
    """Where all settings come from: the file, else JANUS_CONFIG; JANUS_SECRETS_DIR; the environment as it is now."""
    return Sources(
        SECTIONS,
        file=file or _path("JANUS_CONFIG"),
        environ=dict(os.environ),
        secrets_dir=_path("JANUS_SECRETS_DIR"),
        overrides=overrides,
    )


def _path(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value).expanduser() if value else None
