-- Long-running operations: what was asked for, how far it is, and who works on
-- it. `lease` is the owner, until `leased_until` by this database's clock;
-- `epoch` counts owners, and whoever writes says under which, so that one that
-- lost the lease changes nothing any more. `cursor` is where to go on after a
-- restart; `change` counts what a watcher sees. `failures` are owners that died
-- and errors that nobody expected, `waits` the times that a part was away, both
-- since it last got on. `error` is a google.rpc.Status.
CREATE TABLE memory.operation (
    tenant           text        NOT NULL DEFAULT current_setting('janus.tenant'),
    id               text        NOT NULL,
    kind             text        NOT NULL,
    state            smallint    NOT NULL DEFAULT 1 CHECK (state BETWEEN 1 AND 5),
    arguments        jsonb       NOT NULL,
    cursor           jsonb       NOT NULL DEFAULT '{}',
    done             bigint      NOT NULL DEFAULT 0,
    total            bigint      NOT NULL DEFAULT 0,
    phase            text        NOT NULL DEFAULT '',
    error            bytea       NOT NULL DEFAULT '',
    result_json      text        NOT NULL DEFAULT '',
    requested_by     text        NOT NULL,
    cancel_requested boolean     NOT NULL DEFAULT false,
    change           bigint      NOT NULL DEFAULT 1,
    waits            integer     NOT NULL DEFAULT 0,
    failures         integer     NOT NULL DEFAULT 0,
    available_at     timestamptz NOT NULL DEFAULT now(),
    lease            uuid,
    leased_until     timestamptz,
    epoch            bigint      NOT NULL DEFAULT 0,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    ended_at         timestamptz,
    PRIMARY KEY (tenant, id)
);
CREATE INDEX operation_due ON memory.operation (available_at, id) WHERE ended_at IS NULL;
CREATE INDEX operation_age ON memory.operation (ended_at) WHERE ended_at IS NOT NULL;

ALTER TABLE memory.operation ENABLE ROW LEVEL SECURITY;
ALTER TABLE memory.operation FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON memory.operation TO janus_app
    USING (tenant = current_setting('janus.tenant', true))
    WITH CHECK (tenant = current_setting('janus.tenant', true));
GRANT SELECT, INSERT, UPDATE, DELETE ON memory.operation TO janus_app;

-- The worker leases operations of every tenant and removes those that ended
-- long ago. It sees neither what was asked nor what came of it.
GRANT SELECT (tenant, id, kind, available_at, lease, leased_until, epoch, failures, change, ended_at),
      UPDATE (state, lease, leased_until, epoch, failures, change, updated_at),
      DELETE
    ON memory.operation TO janus_worker;
CREATE POLICY find ON memory.operation FOR SELECT TO janus_worker USING (true);
CREATE POLICY claim ON memory.operation FOR UPDATE TO janus_worker USING (ended_at IS NULL) WITH CHECK (true);
CREATE POLICY expire ON memory.operation FOR DELETE TO janus_worker USING (ended_at < now() - interval '30 days');
