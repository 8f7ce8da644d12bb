"""Postgres writes down who wrote what of a run, whatever the service believes.

Each replica logs in with a name of its own. Triggers note which of them took a run under which epoch
and which wrote to it, what was written with another epoch than the run's, and what was changed that
nobody may change any more.
"""

from __future__ import annotations

import secrets
from urllib.parse import urlsplit, urlunsplit

import asyncpg

_SCHEMA = """
CREATE SCHEMA chaos;
CREATE TABLE chaos.noted (
    number bigint GENERATED ALWAYS AS IDENTITY,
    what   text,
    run_id text,
    epoch  bigint,
    who    text DEFAULT session_user
);

CREATE FUNCTION chaos.note(what text, run_id text, epoch bigint) RETURNS void LANGUAGE sql AS
$$ INSERT INTO chaos.noted (what, run_id, epoch) VALUES (what, run_id, epoch) $$;

CREATE FUNCTION chaos.of_run() RETURNS trigger SECURITY DEFINER LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' OR NEW.epoch <> OLD.epoch THEN
        PERFORM chaos.note('taken', NEW.id, NEW.epoch);
    ELSE
        IF (NEW.revision, NEW.reserved_sequence, NEW.stream_broken)
           IS DISTINCT FROM (OLD.revision, OLD.reserved_sequence, OLD.stream_broken) THEN
            PERFORM chaos.note('written', NEW.id, NEW.epoch);
        END IF;
        IF OLD.ended_at IS NOT NULL AND (NEW.state, NEW.ended_at) IS DISTINCT FROM (OLD.state, OLD.ended_at) THEN
            PERFORM chaos.note('a run that had ended was changed', NEW.id, NEW.epoch);
        END IF;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER chaos AFTER INSERT OR UPDATE ON orchestration.run FOR EACH ROW EXECUTE FUNCTION chaos.of_run();

CREATE FUNCTION chaos.of_event() RETURNS trigger SECURITY DEFINER LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        PERFORM chaos.note('an event was changed or removed', OLD.run_id, OLD.epoch);
    ELSIF NEW.epoch <> (SELECT epoch FROM orchestration.run r WHERE r.id = NEW.run_id) THEN
        PERFORM chaos.note('an event of another epoch was written', NEW.run_id, NEW.epoch);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER chaos AFTER INSERT OR UPDATE OR DELETE ON orchestration.event
    FOR EACH ROW EXECUTE FUNCTION chaos.of_event();

CREATE FUNCTION chaos.of_step() RETURNS trigger SECURITY DEFINER LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' OR OLD.ended_at IS NOT NULL THEN
        PERFORM chaos.note('a step that had ended was journalled again', OLD.run_id, OLD.index);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER chaos AFTER UPDATE OR DELETE ON orchestration.step
    FOR EACH ROW EXECUTE FUNCTION chaos.of_step();
"""

# An owner is whoever took the run under the epoch that it had at the time.
_FENCED = """
SELECT written.run_id, written.epoch, written.who, taken.who AS owner, count(*) AS writes
FROM chaos.noted written JOIN chaos.noted taken
  ON taken.what = 'taken' AND taken.run_id = written.run_id AND taken.epoch = written.epoch
WHERE written.what = 'written' AND written.who <> taken.who
GROUP BY 1, 2, 3, 4
"""


async def install(url: str, replicas: int) -> list[str]:
    """Begin to write down; a URL for each replica."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(_SCHEMA)
        urls = []
        for number in range(1, replicas + 1):
            name, password = f"replica_{number}", secrets.token_hex(8)
            await connection.execute(f"CREATE ROLE {name} SUPERUSER LOGIN PASSWORD '{password}'")
            parts = urlsplit(url)
            netloc = f"{name}:{password}@{parts.netloc.rpartition('@')[2]}"
            urls.append(urlunsplit(parts._replace(netloc=netloc)))
    finally:
        await connection.close()
    return urls


async def findings(connection: asyncpg.Connection) -> list[str]:
    """What nobody may have done."""
    found = [
        f"{row['run_id']}: {row['who']} wrote {row['writes']} times under epoch {row['epoch']} of {row['owner']}"
        for row in await connection.fetch(_FENCED)
    ]
    rows = await connection.fetch("SELECT * FROM chaos.noted WHERE what NOT IN ('taken', 'written') ORDER BY number")
    return found + [f"{row['run_id']}: {row['what']}, by {row['who']} ({row['epoch']})" for row in rows]


async def written(connection: asyncpg.Connection) -> int:
    """How many writes of owners were seen."""
    count: int = await connection.fetchval("SELECT count(*) FROM chaos.noted WHERE what = 'written'")
    return count
