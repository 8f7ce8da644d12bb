"""The verified caller of the work at hand."""

from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass

from janus_kit.errors import Unauthenticated
from janus_kit.scoped import Scoped

DEVELOPMENT_TENANT = "development"

# Every scope of `janus/common/v1/scope.proto`; a test compares the two.
ALL_SCOPES = frozenset(
    {
        "inference.use",
        "inference.read",
        "inference.admin",
        "memory.read",
        "memory.write",
        "memory.admin",
        "orchestration.read",
        "orchestration.run",
        "orchestration.admin",
        "tools.serve",
        "status.read",
    }
)


@dataclass(frozen=True)
class Identity:
    """A verified caller.

    ``tenant`` separates data; ``subject`` is the person or program within it;
    ``scopes`` are what it may do.
    """

    tenant: str
    subject: str
    scopes: frozenset[str]


_identity: ContextVar[Identity | None] = ContextVar("janus_identity", default=None)


def current_identity() -> Identity:
    """The identity of the call, or of ``acting_as``. Raises Unauthenticated without one."""
    identity = _identity.get()
    if identity is None:
        raise Unauthenticated()
    return identity


def identity_or_none() -> Identity | None:
    """The identity at hand, or None; for code that serves both sides."""
    return _identity.get()


def acting_as(identity: Identity) -> AbstractContextManager[None]:
    """Work on behalf of an identity outside of its call, e.g. a resumed run."""
    return Scoped(_identity, identity)
