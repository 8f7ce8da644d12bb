-- Erasing a subject: its rows are found by index, writers of it are waited for,
-- and what is still to be removed from stores beside Postgres is on record.

CREATE INDEX turn_subject ON memory.turn (tenant, subject, space_no, thread, position) WHERE subject <> '';
CREATE INDEX memory_subject ON memory.memory (tenant, subject, space_no, id, version) WHERE subject <> '';
CREATE INDEX unit_subject ON memory.unit (tenant, subject, space_no, unit) WHERE subject <> '';

-- Whose records a stored answer is about.
ALTER TABLE memory.request ADD COLUMN subjects text[] NOT NULL DEFAULT '{}';

-- Every transaction that writes records of a subject holds this lock, shared,
-- until it ends; an erasure takes it alone for the moment in which it sees that
-- nothing is left. So a write is either erased or clearly after it.
CREATE FUNCTION memory.subject_key(tenant text, subject text) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN hashtextextended('janus.memory.subject:' || tenant || ':' || subject, 0);
CREATE FUNCTION memory.hold_subject() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(memory.subject_key(NEW.tenant, NEW.subject));
    RETURN NEW;
END $$;
CREATE TRIGGER hold_subject BEFORE INSERT ON memory.turn
    FOR EACH ROW WHEN (NEW.subject <> '') EXECUTE FUNCTION memory.hold_subject();
CREATE TRIGGER hold_subject BEFORE INSERT ON memory.memory
    FOR EACH ROW WHEN (NEW.subject <> '') EXECUTE FUNCTION memory.hold_subject();
CREATE TRIGGER hold_subject BEFORE INSERT OR UPDATE ON memory.block
    FOR EACH ROW WHEN (NEW.subject <> '') EXECUTE FUNCTION memory.hold_subject();
CREATE INDEX block_subject ON memory.block (tenant, subject, space_no) WHERE subject <> '';

-- Erasures that have begun and not ended, with what they removed so far.
-- `space_no` 0: every space.
CREATE TABLE memory.erasure (
    tenant     text        NOT NULL DEFAULT current_setting('janus.tenant'),
    subject    text        NOT NULL,
    space_no   bigint      NOT NULL,
    removed    jsonb       NOT NULL DEFAULT '{}',
    started_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, subject, space_no)
);

-- What an erasure removed from Postgres and still has to remove elsewhere,
-- written in the transaction that removed it. `kind` 1: a unit that is gone;
-- 2: a unit of somebody else whose vector was made with text that is gone;
-- 3: a thread's window; 4: an id that others may cite as a source.
CREATE TABLE memory.erasing (
    tenant   text     NOT NULL DEFAULT current_setting('janus.tenant'),
    subject  text     NOT NULL,
    space_no bigint   NOT NULL,
    kind     smallint NOT NULL CHECK (kind BETWEEN 1 AND 4),
    ref      text     NOT NULL,
    PRIMARY KEY (tenant, subject, space_no, kind, ref)
);

-- The key that receipts are signed with where the settings have none: 32 bytes,
-- made with the tenant's first erasure.
CREATE TABLE memory.receipt_key (
    tenant     text        NOT NULL DEFAULT current_setting('janus.tenant'),
    seed       bytea       NOT NULL CHECK (octet_length(seed) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant)
);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['erasure', 'erasing', 'receipt_key'] LOOP
        EXECUTE format('ALTER TABLE memory.%I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE memory.%I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY tenant ON memory.%I TO janus_app '
                       'USING (tenant = current_setting(''janus.tenant'', true)) '
                       'WITH CHECK (tenant = current_setting(''janus.tenant'', true))', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON memory.%I TO janus_app', name);
    END LOOP;
END $$;

-- When a space's indexes were last compared with its records. The worker looks
-- for spaces whose turn it is: it sees their names and nothing in them.
ALTER TABLE memory.space ADD COLUMN reconciled_at timestamptz NOT NULL DEFAULT now();
GRANT SELECT (tenant, name, number, reconciled_at) ON memory.space TO janus_worker;
CREATE POLICY survey ON memory.space FOR SELECT TO janus_worker USING (true);
-- And for erasures that whoever began them did not end.
GRANT SELECT (tenant, started_at) ON memory.erasure TO janus_worker;
CREATE POLICY survey ON memory.erasure FOR SELECT TO janus_worker USING (true);
CREATE INDEX outbox_unit ON memory.outbox (tenant, space_no, unit);
