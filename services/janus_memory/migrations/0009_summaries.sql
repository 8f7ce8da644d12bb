-- A thread's older turns in short, as GetWindow answers them. Derived: a row that
-- is lost is made again. `text` covers the turns at positions 1 to `upto` of the
-- thread's `incarnation`. Whoever works on it holds `lease`; nobody else begins
-- before `available_at`. `attempts` counts the model's failures since its last success.
CREATE TABLE memory.summary (
    tenant       text        NOT NULL DEFAULT current_setting('janus.tenant'),
    space_no     bigint      NOT NULL,
    thread       text        NOT NULL,
    incarnation  uuid        NOT NULL,
    upto         bigint      NOT NULL DEFAULT 0,
    text         text        NOT NULL DEFAULT '',
    attempts     integer     NOT NULL DEFAULT 0,
    lease        uuid,
    available_at timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, space_no, thread)
);
ALTER TABLE memory.summary ENABLE ROW LEVEL SECURITY;
ALTER TABLE memory.summary FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON memory.summary TO janus_app
    USING (tenant = current_setting('janus.tenant', true))
    WITH CHECK (tenant = current_setting('janus.tenant', true));
GRANT SELECT, INSERT, UPDATE, DELETE ON memory.summary TO janus_app;

-- The worker finds threads of every tenant that have grown. It reads no text and
-- writes nothing: the thread is then claimed as the tenant it belongs to.
GRANT SELECT (tenant, space_no, id, incarnation, last_position) ON memory.thread TO janus_worker;
CREATE POLICY grown ON memory.thread FOR SELECT TO janus_worker USING (true);
GRANT SELECT (tenant, space_no, thread, incarnation, upto, available_at) ON memory.summary TO janus_worker;
CREATE POLICY due ON memory.summary FOR SELECT TO janus_worker USING (true);

-- A thread that loses turns gets another incarnation, or goes: a summary that may
-- tell of them goes with the same transaction, and one that is being written finds
-- no row to keep it in.
CREATE FUNCTION memory.drop_summary() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM memory.summary s
    WHERE s.tenant = OLD.tenant AND s.space_no = OLD.space_no AND s.thread = OLD.id;
    RETURN NULL;
END $$;
CREATE TRIGGER drop_summary AFTER UPDATE OF incarnation OR DELETE ON memory.thread
    FOR EACH ROW EXECUTE FUNCTION memory.drop_summary();
