"""The production process: Gunicorn keeps workers alive, each serves with uvicorn.

Each worker opens its own channels, after the fork: gRPC does not survive one.
"""

import asyncio
import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from gunicorn.workers.base import Worker

from janus_edge.metrics import MULTIPROCESS_DIR
from janus_edge.settings import EdgeSettings
from janus_kit.lifecycle import watch_loop_lag
from janus_kit.settings import TelemetrySettings
from janus_kit.telemetry.metrics import build_info
from janus_kit.version import revision, version

if TYPE_CHECKING:
    from janus_edge.app import QuietServer

# Beyond the drain that uvicorn does itself, before Gunicorn kills.
_GRACE_S = 5
# A worker whose event loop stands still for so long is replaced; how often it says that it does not.
_STUCK_S = 60
_BEAT_S = 1


class EdgeWorker(Worker):  # type: ignore[misc]
    """A worker process with an event loop of its own."""

    _host: "QuietServer"

    def init_signals(self) -> None:
        # Ours come with the loop; until then a signal ends the process.
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGUSR1, self.handle_usr1)

    def run(self) -> None:
        import uvloop

        uvloop.run(self._serve())

    async def _serve(self) -> None:
        from janus_edge.app import QuietServer, application, uvicorn_config

        build_info.labels(version(), revision()).set(1)
        settings: EdgeSettings = self.wsgi
        async with application(settings) as edge:
            config = uvicorn_config(edge.asgi, settings)
            config.callback_notify = self._alive
            config.timeout_notify = _BEAT_S
            self._host = host = QuietServer(config)

            def leave(*, at_once: bool = False) -> None:
                edge.drain()
                host.should_exit, host.force_exit = True, at_once

            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGTERM, leave)
            loop.add_signal_handler(signal.SIGINT, leave)
            # Gunicorn's quick stop: what is in flight is cancelled.
            loop.add_signal_handler(signal.SIGQUIT, lambda: leave(at_once=True))
            lag = asyncio.create_task(watch_loop_lag("edge"))
            try:
                await host.serve(self.sockets)
            finally:
                lag.cancel()

    async def _alive(self) -> None:
        self.notify()
        if os.getppid() != self.ppid:
            # The arbiter was killed: a new one could not have the address while this worker has it.
            self._host.should_exit = True


class _Log(Logger):  # type: ignore[misc]
    """Gunicorn's own lines, in the form and place of all others."""

    def setup(self, cfg: Any) -> None:
        self.error_log.propagate = True
        self.error_log.handlers.clear()
        self.error_log.setLevel(logging.NOTSET)


class EdgeServer(BaseApplication):  # type: ignore[misc]
    """Gunicorn's arbiter, configured from the settings and nothing else."""

    def __init__(self, settings: EdgeSettings, telemetry: TelemetrySettings) -> None:
        self._settings = settings
        self._telemetry = telemetry
        super().__init__()

    def load_config(self) -> None:
        options: dict[str, Any] = {
            "bind": self._settings.listen,
            "workers": self._settings.workers,
            "worker_class": EdgeWorker,
            "graceful_timeout": max(1, round(self._settings.drain_s)) + _GRACE_S,
            "timeout": _STUCK_S,
            "proc_name": "janus-edge",
            "post_fork": self._after_fork,
            "child_exit": _forget_worker,
            "logger_class": _Log,
            "control_socket_disable": True,
        }
        if Path("/dev/shm").is_dir():  # noqa: S108 - where workers' heartbeats cost no disk
            options["worker_tmp_dir"] = "/dev/shm"  # noqa: S108
        for name, value in options.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> EdgeSettings:
        """What a worker serves; Gunicorn expects an application and hands it on as it is."""
        return self._settings

    def _after_fork(self, server: Any, worker: Any) -> None:
        from janus_kit.telemetry import tracing

        tracing.configure(
            endpoint=self._telemetry.otlp_endpoint,
            service="janus-edge",
            version=version(),
            ratio=self._telemetry.trace_ratio,
        )


def _forget_worker(server: Any, worker: Any) -> None:
    """A dead worker's gauges go, its counters stay in the sum."""
    if MULTIPROCESS_DIR in os.environ:
        from prometheus_client import multiprocess

        multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]
