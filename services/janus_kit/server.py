"""The server host: puts mounts on listeners, keeps them healthy, and ends them in order.

A process may have two listeners: TCP for the outside and a Unix socket for
calls between its own services. They are two gRPC servers, so that at stop the
outside is drained while calls that are still being worked on can reach the
other services to the end.

``stopping`` has the order in which all of it ends.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime

import grpc
import uvloop

from janus_api.common.v1 import status_service_pb2_grpc
from janus_kit import collector, health_service, status_service, transport
from janus_kit.auth.scopes import methods_of
from janus_kit.health import HealthMonitor
from janus_kit.interceptors.deadline import Deadline
from janus_kit.interceptors.identity import Authenticator, DevelopmentAuthenticator
from janus_kit.interceptors.limits import Admission, ConcurrencyCap
from janus_kit.interceptors.pipeline import Pipeline
from janus_kit.lifecycle import Background, watch_loop_lag
from janus_kit.mount import Mount
from janus_kit.settings import ServerSettings, TelemetrySettings
from janus_kit.stopping import Host, Listener, drain, stop
from janus_kit.telemetry import logging, metrics, tracing
from janus_kit.telemetry.exposition import MetricsListener
from janus_kit.transport import ListenError
from janus_kit.version import revision, version

__all__ = ["Host", "run", "serve"]

_log = logging.get_logger(__name__)


@asynccontextmanager
async def serve(
    mounts: Sequence[Mount],
    settings: ServerSettings,
    *,
    telemetry: TelemetrySettings | None = None,
    authenticator: Authenticator | None = None,
    admission: Admission | None = None,
) -> AsyncIterator[Host]:
    """Serve the mounts until the block ends.

    Raises ListenError when an address cannot be had, or is open to others with
    only the development identity; UndeclaredScopeError when an RPC declares no
    scope.
    """
    check_listen(settings)
    status = _StatusMount()
    all_mounts = (*mounts, status.mount)
    _refuse_duplicates(all_mounts)
    monitor = HealthMonitor(all_mounts, interval_s=settings.health_interval_s)
    status.monitor = monitor
    host = Host(monitor)
    metrics.build_info.labels(version(), revision()).set(1)

    infrastructure = _infrastructure(monitor, settings)
    methods = methods_of(monitor.services, infrastructure)
    gate = authenticator or DevelopmentAuthenticator()
    limits = admission or ConcurrencyCap(
        calls=settings.max_calls_per_identity, streams=settings.max_streams_per_identity
    )
    deadline = Deadline(settings.max_deadline_s, settings.max_stream_deadline_s)

    def listener(options: list[tuple[str, int]]) -> Listener:
        pipeline = Pipeline(
            methods,
            authenticator=gate,
            admission=limits,
            deadline=deadline,
            max_message_bytes=settings.max_message_bytes,
        )
        server = grpc.aio.server(interceptors=[pipeline], options=options)
        # At every call gRPC awaits the next one of every registered method; with many that costs more than it saves.
        server.add_registered_method_handlers = lambda *_: None  # type: ignore[method-assign]
        for mount in all_mounts:
            mount.register(server)
        for register in infrastructure.values():
            register(server)
        return Listener(server, pipeline)

    listeners: list[Listener] = []
    background = Background()
    exposition = MetricsListener(monitor)
    try:
        if settings.listen:
            outside = listener(transport.tcp_options(settings))
            host.address = transport.bind_tcp(outside.server, settings.listen)
            listeners.append(outside)
        if settings.uds:
            inside = listener(transport.uds_options(settings))
            host.uds = transport.bind_uds(inside.server, settings.uds)
            listeners.append(inside)
        if not listeners:
            raise ListenError("nothing to listen on: both server.listen and server.uds are empty")
        if telemetry is not None and telemetry.metrics_listen:
            host.metrics_address = await exposition.open(telemetry.metrics_listen)
        for each in listeners:
            await each.server.start()
        await monitor.refresh()
        names = "+".join(mount.name for mount in mounts)
        background.start([("health", monitor.run), ("loop-lag", lambda: watch_loop_lag(names))])
        background.start(task for mount in mounts for task in mount.background)
        _log.info("serving", address=host.address, uds=host.uds, services=names, version=version())
        try:
            yield host
        finally:
            await drain(host, mounts, listeners[0], settings)
    finally:
        await stop(listeners, background)
        await exposition.close()


def run(
    mounting: Callable[[], AbstractAsyncContextManager[Sequence[Mount]]],
    settings: ServerSettings,
    telemetry: TelemetrySettings,
    *,
    name: str = "janus",
    on_hangup: Callable[[], None] | None = None,
) -> None:
    """Serve as a process of its own until SIGTERM or SIGINT, on uvloop.

    ``mounting`` builds the mounts and closes what they hold. A second signal
    ends the drain. ``on_hangup`` is called on SIGHUP, from the start on, which
    then ends nothing; without it SIGHUP ends the process at once.
    """
    logging.configure(level=telemetry.log_level, form=telemetry.log_format)
    tracing.configure(endpoint=telemetry.otlp_endpoint, service=name, version=version(), ratio=telemetry.trace_ratio)
    try:
        uvloop.run(_run(mounting, settings, telemetry, on_hangup))
    finally:
        tracing.shutdown()


async def _run(
    mounting: Callable[[], AbstractAsyncContextManager[Sequence[Mount]]],
    settings: ServerSettings,
    telemetry: TelemetrySettings,
    on_hangup: Callable[[], None] | None,
) -> None:
    loop = asyncio.get_running_loop()
    if on_hangup is not None:
        loop.add_signal_handler(signal.SIGHUP, on_hangup)
    async with mounting() as mounts, serve(mounts, settings, telemetry=telemetry) as host:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, host.stop)
        collector.settle()
        await host.wait_closed()


class _StatusMount:
    """StatusService, mounted on every host like any other service."""

    def __init__(self) -> None:
        self.monitor: HealthMonitor
        self._started_at = datetime.now(UTC)
        self.mount = Mount("status", self._register, (status_service.SERVICE,))

    def _register(self, server: grpc.aio.Server) -> None:
        status_service_pb2_grpc.add_StatusServiceServicer_to_server(
            status_service.StatusServicer(self.monitor, version=version(), started_at=self._started_at),
            server,
        )


def _infrastructure(monitor: HealthMonitor, settings: ServerSettings) -> dict[str, Callable[[grpc.aio.Server], None]]:
    """gRPC's own services that are on, by name, and how to put each on a server."""
    services: dict[str, Callable[[grpc.aio.Server], None]] = {
        health_service.SERVICE: lambda server: health_service.register(server, monitor)
    }
    # Reflection and channelz tell about the server to whoever asks.
    is_open = settings.identity == "development"
    if is_open if settings.channelz is None else settings.channelz:
        from grpc_channelz.v1 import channelz

        services["grpc.channelz.v1.Channelz"] = channelz.add_channelz_servicer
    if is_open if settings.reflection is None else settings.reflection:
        from grpc_reflection.v1alpha import reflection

        shown = (*monitor.services, *services, reflection.SERVICE_NAME)
        services[reflection.SERVICE_NAME] = lambda server: reflection.enable_server_reflection(shown, server)
    return services


def check_listen(settings: ServerSettings) -> None:
    """Raise ListenError for an address that would be refused, before anything else is started."""
    if settings.listen:
        transport.require_address(settings.listen)
    if (
        settings.listen
        and settings.identity == "development"
        and not settings.allow_remote_development
        and not transport.is_loopback(settings.listen)
    ):
        raise ListenError(
            f"refusing to listen on {settings.listen}: with the development identity nobody has to "
            "show a credential. Listen on 127.0.0.1, or set server.allow_remote_development to true "
            "on a network that only trusted programs reach."
        )


def _refuse_duplicates(mounts: Sequence[Mount]) -> None:
    names = [mount.name for mount in mounts]
    if len(set(names)) != len(names):
        raise ValueError(f"two mounts have the same name: {', '.join(names)}")
