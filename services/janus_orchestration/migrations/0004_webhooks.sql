-- Webhooks, and what they have yet to tell: an outbox that is written with the events themselves.

CREATE TABLE orchestration.webhook (
    tenant          text        NOT NULL,
    name            text        NOT NULL,
    version         bigint      NOT NULL,
    url             text        NOT NULL,
    -- Kinds of events.
    events          text[]      NOT NULL,
    -- Empty: of all agents.
    agents          text[]      NOT NULL,
    secret          bytea       NOT NULL,
    -- The secret before, which signs as well until then.
    previous_secret bytea,
    previous_until  timestamptz,
    -- The receiver asked for nothing before that.
    not_before      timestamptz NOT NULL DEFAULT '-infinity',
    PRIMARY KEY (tenant, name)
);

-- No reference to the webhook: the end of a run must not fail because its receiver is taken out.
CREATE TABLE orchestration.webhook_delivery (
    tenant       text        NOT NULL,
    webhook      text        NOT NULL,
    run_id       text        NOT NULL,
    sequence     bigint      NOT NULL,
    kind         text        NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Counts claims: only the newest of them may settle it.
    attempts     integer     NOT NULL DEFAULT 0,
    next_attempt timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- It was given up.
    dead_at      timestamptz,
    error        text        NOT NULL DEFAULT '',
    PRIMARY KEY (tenant, webhook, run_id, sequence)
);
CREATE INDEX webhook_delivery_due ON orchestration.webhook_delivery (tenant, webhook, next_attempt)
    WHERE dead_at IS NULL;
CREATE INDEX webhook_delivery_dead ON orchestration.webhook_delivery (dead_at) WHERE dead_at IS NOT NULL;

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['webhook', 'webhook_delivery'] LOOP
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

-- Across tenants: names and times. Addresses and secrets stay out of reach.
GRANT SELECT (tenant, name, not_before) ON orchestration.webhook TO janus_worker;
GRANT SELECT, UPDATE, DELETE ON orchestration.webhook_delivery TO janus_worker;
