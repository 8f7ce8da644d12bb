-- Runs by the clock.

CREATE TABLE orchestration.schedule (
    tenant          text        NOT NULL,
    name            text        NOT NULL,
    version         bigint      NOT NULL,
    cron            text        NOT NULL,
    time_zone       text        NOT NULL,
    agent           text        NOT NULL,
    thread_id       text        NOT NULL,
    -- janus.content.v1.Message, without id and time.
    message         bytea       NOT NULL,
    catch_up        text,
    catch_up_window interval,
    paused          boolean     NOT NULL,
    -- Whom new threads are with, and whom the runs act for.
    subject         text        NOT NULL,
    put_by          text        NOT NULL,
    -- The first time that was not decided on yet.
    next_run_at     timestamptz,
    last_run_at     timestamptz,
    last_run_id     text        NOT NULL DEFAULT '',
    -- google.rpc.Status of why the run that was due last could not be started.
    last_error      bytea,
    -- When a replica looks at it: its next time, and moved on by whoever does.
    look_at         timestamptz NOT NULL,
    PRIMARY KEY (tenant, name)
);
CREATE INDEX schedule_look ON orchestration.schedule (look_at);

-- What keeps a due time from being started twice when its schedule is put anew or made again.
CREATE TABLE orchestration.schedule_run (
    tenant     text        NOT NULL,
    schedule   text        NOT NULL,
    due_at     timestamptz NOT NULL,
    run_id     text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, schedule, due_at)
);
CREATE INDEX schedule_run_age ON orchestration.schedule_run (created_at);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['schedule', 'schedule_run'] LOOP
        EXECUTE format('ALTER TABLE orchestration.%I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE orchestration.%I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format(
            'CREATE POLICY tenant ON orchestration.%I TO janus_app '
            'USING (tenant = current_setting(''janus.tenant'')) '
            'WITH CHECK (tenant = current_setting(''janus.tenant''))', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON orchestration.%I TO janus_app', name);
        EXECUTE format('CREATE POLICY worker ON orchestration.%I TO janus_worker USING (true) WITH CHECK (true)', name);
    END LOOP;
END $$;

-- Across tenants: names and times, and nothing that a tenant wrote.
GRANT SELECT (tenant, name, look_at), UPDATE (look_at) ON orchestration.schedule TO janus_worker;
GRANT SELECT (created_at), DELETE ON orchestration.schedule_run TO janus_worker;
