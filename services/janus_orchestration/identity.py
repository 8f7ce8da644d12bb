"""Whom a run acts for."""

from janus_kit.auth.identity import Identity

# What an agent needs of the other services. The caller needs `orchestration.run`;
# which memory and model an agent uses is for whoever put the agent to say.
_SCOPES = frozenset({"inference.use", "inference.read", "memory.read", "memory.write"})


def of_run(tenant: str, subject: str) -> Identity:
    """The identity under which a run calls the other services."""
    return Identity(tenant, subject, _SCOPES)
