-- What is to be on record of each process's calls should it be killed: rows of
-- inference.usage yet to be. A process renews its will while calls are under
-- way, and takes it back when there are none; when the time of one runs out,
-- whoever finds it puts the calls on record and removes it, in one statement.
--
-- Of processes, not of tenants, so there is no row-level security that could
-- tell rows apart: only the worker may touch it.
CREATE TABLE inference.last_will (
    owner      text        PRIMARY KEY,
    records    jsonb       NOT NULL,
    expires_at timestamptz NOT NULL
);
ALTER TABLE inference.last_will ENABLE ROW LEVEL SECURITY;
ALTER TABLE inference.last_will FORCE ROW LEVEL SECURITY;
CREATE POLICY worker ON inference.last_will TO janus_worker USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON inference.last_will TO janus_worker;
