"""Identity and scope: who calls, and whether they may call this."""

from typing import Protocol

from janus_kit.auth.identity import ALL_SCOPES, DEVELOPMENT_TENANT, Identity
from janus_kit.errors import InvalidArgument, JanusError, PermissionDenied
from janus_kit.ids import ID_RULE, is_id
from janus_kit.interceptors.call import Call
from janus_kit.telemetry import logging, metrics

TENANT = "janus-tenant"


class Authenticator(Protocol):
    """Establishes the caller's identity, or refuses."""

    async def identify(self, call: Call) -> Identity:
        """Raises Unauthenticated when there is no valid credential."""
        ...


class DevelopmentAuthenticator:
    """No credential: everybody is the developer, with every scope.

    `janus-tenant` in the metadata chooses the tenant, so that separation can be
    tried out; without it the tenant is `development`. The host refuses to use
    this on an address that others can reach unless settings say so.
    """

    async def identify(self, call: Call) -> Identity:
        if TENANT in call.repeated:
            raise InvalidArgument(f"metadata.{TENANT}", "must be sent at most once")
        tenant = call.metadata.get(TENANT, DEVELOPMENT_TENANT)
        if not is_id(tenant):
            raise InvalidArgument(f"metadata.{TENANT}", ID_RULE)
        return Identity(tenant=tenant, subject="developer", scopes=ALL_SCOPES)


async def identified(authenticator: Authenticator, call: Call) -> Identity:
    """Establish the identity and check the method's scope. Fails closed."""
    scope = call.method.scope
    try:
        identity = await authenticator.identify(call)
        if scope not in identity.scopes:
            raise PermissionDenied("SCOPE_MISSING", f"the call needs the scope '{scope}'", {"scope": scope or ""})
    except JanusError as refusal:
        metrics.auth_failures.labels(refusal.reason).inc()
        raise
    call.identity = identity
    logging.bind(tenant=identity.tenant)
    return identity
