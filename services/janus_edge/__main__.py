"""Run the edge alone: `python -m janus_edge`.

Gunicorn with uvicorn workers; SIGTERM lets requests finish. Settings come from
JANUS_CONFIG (YAML), JANUS_SECRETS_DIR and the environment (`JANUS_EDGE__…`).
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from janus_edge.settings import EdgeSettings
from janus_kit.settings import Loaded, SettingsError, TelemetrySettings, load
from janus_kit.telemetry import logging

# Sections of the processes that share a configuration with this one.
ELSEWHERE = ("server", "postgres", "redis", "inference", "memory", "orchestration")


def main() -> int:
    """Serve until told to stop; returns the exit status."""
    try:
        loaded = _settings()
    except SettingsError as error:
        print(error, file=sys.stderr)  # noqa: T201 - there is no log yet
        return 2
    settings = loaded.section("edge", EdgeSettings)
    telemetry = loaded.section("telemetry", TelemetrySettings)
    logging.configure(level=telemetry.log_level, form=telemetry.log_format)
    shared = _share_metrics() if settings.workers > 1 else None
    try:
        # Only now: metrics of several workers must be told so before they exist.
        from janus_edge.worker import EdgeServer

        EdgeServer(settings, telemetry).run()
    finally:
        if shared is not None:
            shutil.rmtree(shared, ignore_errors=True)
    return 0


def _settings() -> Loaded:
    file, secrets = os.environ.get("JANUS_CONFIG"), os.environ.get("JANUS_SECRETS_DIR")
    return load(
        {"edge": EdgeSettings, "telemetry": TelemetrySettings},
        file=Path(file) if file else None,
        environ=os.environ,
        secrets_dir=Path(secrets) if secrets else None,
        elsewhere=ELSEWHERE,
    )


def _share_metrics() -> str | None:
    """Let workers count into one folder; one that the operator named is left to them."""
    name = "PROMETHEUS_MULTIPROC_DIR"
    if name in os.environ:
        return None
    os.environ[name] = tempfile.mkdtemp(prefix="janus-edge-metrics-")
    return os.environ[name]


if __name__ == "__main__":
    sys.exit(main())
