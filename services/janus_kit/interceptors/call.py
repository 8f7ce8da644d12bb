"""One call on its way through the interceptors."""

import asyncio
import time
from dataclasses import dataclass, field

import grpc

from janus_kit.auth.identity import Identity


@dataclass(frozen=True, slots=True)
class Method:
    """What is known of a method before it is called."""

    name: str
    """Fully qualified, e.g. ``janus.memory.v1.MemoryService/Recall``."""
    request_type: str
    """Full name of the request message."""
    scope: str | None
    """What the caller's identity must hold; None for gRPC's own services."""
    streams_requests: bool = False
    streams_responses: bool = False

    @property
    def service(self) -> str:
        return self.name.partition("/")[0]

    @property
    def is_stream(self) -> bool:
        return self.streams_requests or self.streams_responses

    @property
    def is_infrastructure(self) -> bool:
        """Health, reflection, channelz: for machines, without identity and limits."""
        return self.scope is None


@dataclass(slots=True)
class Call:
    """The state that the concerns of one call share."""

    method: Method
    context: "grpc.aio.ServicerContext[object, object]"
    arrived: float = field(default_factory=time.perf_counter)
    metadata: dict[str, str] = field(default_factory=dict)
    """Text metadata; of a key that was sent twice, the first value."""
    repeated: frozenset[str] = frozenset()
    """Keys that were sent more than once."""
    request_id: str = ""
    identity: Identity | None = None
    first_write: "asyncio.Task[None] | None" = None
    """The first message of a stream on its way out; no status can be sent before it is out."""
    status: grpc.StatusCode = grpc.StatusCode.OK
    reason: str = ""

    def read_metadata(self) -> None:
        """Take the invocation metadata over. Binary values stay with the context."""
        twice = set()
        for key, value in self.context.invocation_metadata() or ():
            if isinstance(value, str):
                if key in self.metadata:
                    twice.add(key)
                else:
                    self.metadata[key] = value
        if twice:
            self.repeated = frozenset(twice)

    @property
    def seconds(self) -> float:
        """Since arrival."""
        return time.perf_counter() - self.arrived
