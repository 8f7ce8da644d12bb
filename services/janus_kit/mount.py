"""What a service hands to the server host."""

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc

BackgroundTask = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Part:
    """One dependency of a service, checked for real.

    ``check`` raises when the part is away; a JanusError's message becomes the
    detail that people see, any other exception is described by its kind only.
    It is given 2 s. ``when_away`` says what the service does meanwhile, e.g.
    ``"windows are read from postgres"``. A required part that is away makes
    the service NOT_SERVING; any other leaves it serving, degraded.
    """

    name: str
    required: bool
    check: Callable[[], Awaitable[None]]
    when_away: str = ""


@dataclass(frozen=True)
class Parts:
    """The parts that there are now; names are unique. None of those that come later may be required."""

    now: Callable[[], Iterable[Part]]

    def __iter__(self) -> Iterator[Part]:
        return iter(self.now())


@dataclass(frozen=True)
class Mount:
    """One service, built and ready to be put on a server.

    ``register`` adds its servicers; it is called once per listener.
    ``services`` are full protobuf names, for health and reflection.
    ``parts`` are iterated before each check: ``Parts`` where they change with
    the settings.
    ``background`` tasks start once the server serves, are cancelled and
    awaited at stop, and are started again with back-off when they raise.
    ``drain`` runs after the process reports NOT_SERVING and before anything is
    cancelled; the host gives it ``drain_s``. ``conclude`` is called shortly before
    calls are cancelled, so that streams can say their own end.
    """

    name: str
    register: Callable[[grpc.aio.Server], None]
    services: tuple[str, ...]
    parts: Iterable[Part] = ()
    background: tuple[tuple[str, BackgroundTask], ...] = ()
    drain: Callable[[], Awaitable[None]] | None = None
    conclude: Callable[[], None] | None = None
