-- Tools that workers offer, the workers that are connected, and the calls that they are given.
--
-- Every table is a tenant's, as in 0001. janus_worker keeps the leases of
-- workers and compares what they have with what a process believes; it sees
-- ids and states, and nothing that a tenant wrote.

-- What workers have offered. Stays when they are gone, so that an agent may
-- name a tool whose worker is restarting.
CREATE TABLE orchestration.tool (
    tenant      text             NOT NULL,
    name        text             NOT NULL,
    description text             NOT NULL,
    schema      text             NOT NULL,
    side_effect text             NOT NULL,
    timeout_s   double precision NOT NULL,
    -- A worker offered it last.
    seen_at     timestamptz      NOT NULL,
    PRIMARY KEY (tenant, name)
);

-- One connection of a worker to one replica.
CREATE TABLE orchestration.tool_worker (
    tenant       text        NOT NULL,
    -- Made by the server, a new one for every connection.
    id           text        PRIMARY KEY,
    -- What the worker calls itself, the same after a reconnect.
    worker_id    text        NOT NULL,
    tools        text[]      NOT NULL,
    -- False once it drains.
    takes_calls  boolean     NOT NULL DEFAULT true,
    -- False once its stream has ended, unless it was told to connect anew. It
    -- may come back for its calls until the lease is over.
    is_connected boolean     NOT NULL DEFAULT true,
    lease_until  timestamptz NOT NULL
);
CREATE INDEX tool_worker_of_tenant ON orchestration.tool_worker (tenant);
CREATE INDEX tool_worker_expiry ON orchestration.tool_worker (lease_until);

-- Calls between the moment in which they may be taken and the commit that
-- journals their result, which removes them. That a call was claimed is here
-- before a worker hears of it: one that never was has done nothing, whatever
-- died; one that was and has no answer has an outcome that nobody knows.
CREATE TABLE orchestration.tool_dispatch (
    tenant           text        NOT NULL,
    run_id           text        NOT NULL,
    step             integer     NOT NULL,
    tool             text        NOT NULL,
    -- A JSON object, checked against the tool's schema.
    arguments        text        NOT NULL,
    thread_id        text        NOT NULL,
    subject          text        NOT NULL,
    traceparent      text        NOT NULL,
    -- open, claimed, answered; withdrawn by the run's owner before anybody claimed it.
    state            text        NOT NULL DEFAULT 'open',
    -- Number of this try.
    attempt          integer     NOT NULL DEFAULT 1,
    -- When it was put up first: its place in the queue, also when it is sent again.
    opened_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Nobody waits for it any longer.
    deadline         timestamptz NOT NULL,
    -- The connection that has it.
    worker           text,
    worker_id        text        NOT NULL DEFAULT '',
    -- Newest report, and how many there were.
    reports          integer     NOT NULL DEFAULT 0,
    progress         double precision,
    progress_message text        NOT NULL DEFAULT '',
    -- janus.content.v1.ToolResult without its call's id.
    result           bytea,
    PRIMARY KEY (tenant, run_id, step)
);
CREATE INDEX tool_dispatch_open ON orchestration.tool_dispatch (tenant, opened_at) WHERE state = 'open';
CREATE INDEX tool_dispatch_claimed ON orchestration.tool_dispatch (worker) WHERE state = 'claimed';

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['tool', 'tool_worker', 'tool_dispatch'] LOOP
        EXECUTE format('ALTER TABLE orchestration.%I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE orchestration.%I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format(
            'CREATE POLICY tenant ON orchestration.%I TO janus_app '
            'USING (tenant = current_setting(''janus.tenant'')) '
            'WITH CHECK (tenant = current_setting(''janus.tenant''))', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON orchestration.%I TO janus_app', name);
    END LOOP;
    FOREACH name IN ARRAY ARRAY['tool_worker', 'tool_dispatch'] LOOP
        EXECUTE format('CREATE POLICY worker ON orchestration.%I TO janus_worker USING (true) WITH CHECK (true)', name);
    END LOOP;
END $$;

GRANT SELECT (id, lease_until), UPDATE (lease_until), DELETE ON orchestration.tool_worker TO janus_worker;
GRANT SELECT (run_id, step, attempt, state, worker) ON orchestration.tool_dispatch TO janus_worker;
