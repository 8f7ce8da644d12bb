-- Which units' vectors changed, and in which transaction, so that who holds a
-- space's vectors in memory reads anew just those that it has not seen. Written
-- by the statement that changes vectors, whoever sends it. Rows of two
-- transactions lie beside each other, so writers do not wait for each other; a
-- reader asks its snapshot of before which of them it could not see.
--
-- Both tables are unlogged: Postgres empties them when it recovers from a crash
-- and when a standby is promoted. Ids of transactions that were lost with its
-- log may be given again then, so that nobody may go on from an older snapshot:
-- `vector_era` tells, by another id.
CREATE UNLOGGED TABLE memory.vector_era (
    tenant text NOT NULL DEFAULT current_setting('janus.tenant') PRIMARY KEY,
    id     uuid NOT NULL DEFAULT gen_random_uuid()
);
CREATE UNLOGGED TABLE memory.vector_change (
    tenant     text        NOT NULL DEFAULT current_setting('janus.tenant'),
    space_no   bigint      NOT NULL,
    generation integer     NOT NULL,
    xid        xid8        NOT NULL DEFAULT pg_current_xact_id(),
    number     bigint      GENERATED ALWAYS AS IDENTITY,
    units      bigint[]    NOT NULL,
    -- Not of the transaction, which may have begun long before others can see it.
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant, space_no, generation, xid, number)
);
CREATE INDEX vector_change_age ON memory.vector_change (created_at);

CREATE FUNCTION memory.vectors_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO memory.vector_change (tenant, space_no, generation, units)
    SELECT tenant, space_no, generation, array_agg(DISTINCT unit) FROM changed
    GROUP BY tenant, space_no, generation;
    RETURN NULL;
END $$;
CREATE TRIGGER vector_inserted AFTER INSERT ON memory.vector REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION memory.vectors_changed();
CREATE TRIGGER vector_updated AFTER UPDATE ON memory.vector REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION memory.vectors_changed();
CREATE TRIGGER vector_deleted AFTER DELETE ON memory.vector REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION memory.vectors_changed();

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['vector_era', 'vector_change'] LOOP
        EXECUTE format('ALTER TABLE memory.%I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE memory.%I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY tenant ON memory.%I TO janus_app '
                       'USING (tenant = current_setting(''janus.tenant'', true)) '
                       'WITH CHECK (tenant = current_setting(''janus.tenant'', true))', name);
        EXECUTE format('GRANT SELECT, INSERT ON memory.%I TO janus_app', name);
    END LOOP;
END $$;

-- Who holds vectors looks every few seconds, and trusts nothing that is older than two minutes.
GRANT SELECT (created_at), DELETE ON memory.vector_change TO janus_worker;
CREATE POLICY expire ON memory.vector_change TO janus_worker USING (created_at < now() - interval '10 minutes');
