-- The life of a record: versions of a memory and why they were made, blocks,
-- and what a space's retention removes.

-- `change` is Change of the contract. A version that closes a memory (another
-- memory took its place, or it was forgotten) is superseded when it is
-- recorded, so no search ever finds it. A purged version keeps its key, its
-- times and who made it.
ALTER TABLE memory.memory
    ADD COLUMN change     smallint NOT NULL DEFAULT 1 CHECK (change BETWEEN 1 AND 6),
    ADD COLUMN message_id text     NOT NULL DEFAULT '',
    ADD COLUMN reason     text     NOT NULL DEFAULT '',
    ADD COLUMN purged     boolean  NOT NULL DEFAULT false;
-- Later versions of before are changes of the first. The owner sees rows for
-- this one statement.
ALTER TABLE memory.memory NO FORCE ROW LEVEL SECURITY;
UPDATE memory.memory SET change = 2 WHERE version > 1;
ALTER TABLE memory.memory FORCE ROW LEVEL SECURITY;
CREATE INDEX memory_age ON memory.memory (tenant, space_no, recorded_at);

-- What BM25 counts is what is current. `retired`: superseded or expired, and
-- taken out of the statistics. A unit is counted when it is not retired and no
-- outbox row of it waits to be counted.
ALTER TABLE memory.unit ADD COLUMN retired boolean NOT NULL DEFAULT false;
CREATE INDEX unit_ending ON memory.unit (tenant, space_no, expires_at)
    WHERE NOT retired AND (superseded_at IS NOT NULL OR expires_at IS NOT NULL);
-- Lists of memories, newest first; and turns by age.
CREATE INDEX unit_listed ON memory.unit (tenant, space_no, recorded_at, record_id) WHERE kind > 1;
CREATE INDEX unit_age ON memory.unit (tenant, space_no, recorded_at) WHERE kind = 1;

-- Unset: kept for ever. `removed` counts turns that are gone from a thread;
-- positions are never given again.
ALTER TABLE memory.space ADD COLUMN retention interval CHECK (retention > interval '0');
ALTER TABLE memory.thread ADD COLUMN removed bigint NOT NULL DEFAULT 0;

-- Core memory. Only the current version is kept.
CREATE TABLE memory.block (
    tenant      text        NOT NULL DEFAULT current_setting('janus.tenant'),
    space_no    bigint      NOT NULL,
    name        text        NOT NULL,
    subject     text        NOT NULL,
    agent       text        NOT NULL,
    version     bigint      NOT NULL DEFAULT 1 CHECK (version >= 1),
    text        text        NOT NULL,
    size_limit  integer     NOT NULL CHECK (size_limit BETWEEN 1 AND 65536),
    description text        NOT NULL DEFAULT '',
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, space_no, name, subject, agent)
);
ALTER TABLE memory.block ENABLE ROW LEVEL SECURITY;
ALTER TABLE memory.block FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON memory.block TO janus_app
    USING (tenant = current_setting('janus.tenant', true))
    WITH CHECK (tenant = current_setting('janus.tenant', true));
GRANT SELECT, INSERT, UPDATE, DELETE ON memory.block TO janus_app;

-- The worker finds spaces where something may have come to its end: by age and
-- expiry alone, never by text.
GRANT SELECT (tenant, number, retention) ON memory.space TO janus_worker;
CREATE POLICY sweep ON memory.space FOR SELECT TO janus_worker USING (retention IS NOT NULL);
GRANT SELECT (tenant, space_no, retired, superseded_at, expires_at) ON memory.unit TO janus_worker;
CREATE POLICY sweep ON memory.unit FOR SELECT TO janus_worker
    USING (NOT retired AND (superseded_at IS NOT NULL OR expires_at IS NOT NULL));
