"""All sections that a whole mesh has, and where their values come from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from janus_app.embedded import default_data_folder
from janus_edge.settings import EdgeSettings
from janus_inference.settings import InferenceSettings
from janus_kit.settings import (
    Loaded,
    PostgresSettings,
    RedisSettings,
    ServerSettings,
    Settings,
    SettingsError,
    TelemetrySettings,
    load,
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

__all__ = ["SECTIONS", "SettingsError", "data_folder", "load_settings"]


def data_folder(data: Path | None) -> Path:
    """`--data`, else JANUS_DATA, else the user's data folder."""
    if data is not None:
        return data.expanduser().absolute()
    if named := os.environ.get("JANUS_DATA"):
        return Path(named).expanduser().absolute()
    return default_data_folder()


def load_settings(file: Path | None, overrides: Mapping[str, Any]) -> Loaded:
    """Defaults < file < secrets < environment < arguments. Raises SettingsError."""
    config = file or _path("JANUS_CONFIG")
    return load(SECTIONS, file=config, environ=os.environ, secrets_dir=_path("JANUS_SECRETS_DIR"), overrides=overrides)


def _path(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value).expanduser() if value else None
