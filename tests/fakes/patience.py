"""Settings for stores on a machine that is busy or stands still now and then."""

from pydantic import SecretStr

from janus_kit.settings import PostgresSettings


def patient_postgres(url: str) -> PostgresSettings:
    """A pool that waits for Postgres, where it is no matter how long that takes."""
    return PostgresSettings(url=SecretStr(url), pool_wait_s=20, connect_timeout_s=10)
