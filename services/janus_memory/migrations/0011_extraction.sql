-- Turning turns into memories with a model, as a long-running operation.

-- Up to where a thread was read, by what of it was asked for: only the turns of
-- one subject or agent, or ('') of all.
CREATE TABLE memory.extraction (
    tenant   text   NOT NULL DEFAULT current_setting('janus.tenant'),
    space_no bigint NOT NULL,
    thread   text   NOT NULL,
    subject  text   NOT NULL,
    agent    text   NOT NULL,
    upto     bigint NOT NULL CHECK (upto > 0),
    PRIMARY KEY (tenant, space_no, thread, subject, agent),
    -- A new thread of an old name is read from its beginning.
    FOREIGN KEY (tenant, space_no, thread) REFERENCES memory.thread (tenant, space_no, id) ON DELETE CASCADE
);

-- Answers that could not be used, with what to ask again: `arguments` are those
-- of an operation. `answer` may hold what anybody said in these turns: it goes
-- with their subjects, and is as old as the oldest of them.
CREATE TABLE memory.dead_letter (
    tenant       text        NOT NULL DEFAULT current_setting('janus.tenant'),
    space_no     bigint      NOT NULL,
    id           bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    subjects     text[]      NOT NULL,
    arguments    jsonb       NOT NULL,
    requested_by text        NOT NULL,
    reason       text        NOT NULL,
    answer       text        NOT NULL,
    dead_at      timestamptz NOT NULL DEFAULT now(),
    recorded_at  timestamptz NOT NULL,
    PRIMARY KEY (tenant, space_no, id)
);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['extraction', 'dead_letter'] LOOP
        EXECUTE format('ALTER TABLE memory.%I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE memory.%I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY tenant ON memory.%I TO janus_app '
                       'USING (tenant = current_setting(''janus.tenant'', true)) '
                       'WITH CHECK (tenant = current_setting(''janus.tenant'', true))', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON memory.%I TO janus_app', name);
    END LOOP;
END $$;

-- The worker counts dead letters and says whose they are; it reads none.
GRANT SELECT (tenant) ON memory.dead_letter TO janus_worker;
CREATE POLICY survey ON memory.dead_letter FOR SELECT TO janus_worker USING (true);
