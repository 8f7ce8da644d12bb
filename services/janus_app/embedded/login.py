"""The user that services connect as to the embedded Postgres.

Row-level security binds the roles ``janus_app`` and ``janus_worker``. Whoever
connects as the superuser can leave them again, for role ``NONE``; this user
owns nothing and can only take these two. `deploy/postgres` makes the same one.
"""

import secrets
from urllib.parse import urlsplit

USER = "janus_service"
_MAKE = f"""
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{USER}') THEN
        CREATE ROLE {USER};
    END IF;
END $$;
ALTER ROLE {USER} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS NOINHERIT;
GRANT janus_app, janus_worker TO {USER};
"""


async def service_url(owner_url: str) -> str:
    """A URL of that user, made if it is missing, with a password of its own for this run. Needs the migrations."""
    import asyncpg  # takes 0.1 s, and clients of the state file do without

    password = secrets.token_hex(24)
    owner = await asyncpg.connect(owner_url, timeout=5, command_timeout=30)
    try:
        await owner.execute(f"{_MAKE} ALTER ROLE {USER} PASSWORD '{password}'")
    finally:
        await owner.close(timeout=2)
    where = urlsplit(owner_url)
    return where._replace(netloc=f"{USER}:{password}@{where.hostname}:{where.port}").geturl()
