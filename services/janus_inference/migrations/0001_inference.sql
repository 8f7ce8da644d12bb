-- Inference: what was used and paid for, and the answers of requests that may
-- be repeated.
--
-- Every key starts with the tenant. Every table has row-level security, forced:
-- a statement sees and writes the rows of `janus.tenant` only, also when its
-- WHERE forgets to say so; without the setting there are no rows at all.

CREATE SCHEMA inference;

-- One attempt that reached a provider. Never changed: what was used stays used.
-- `cost_micro_usd` is NULL when the price is unknown, which is not free.
CREATE TABLE inference.usage (
    tenant                text             NOT NULL,
    generation_id         text             NOT NULL,
    attempt               integer          NOT NULL CHECK (attempt >= 1),
    subject               text             NOT NULL,
    operation             text             NOT NULL,
    provider              text             NOT NULL,
    model                 text             NOT NULL,
    labels                jsonb            NOT NULL DEFAULT '{}',
    started_at            timestamptz      NOT NULL,
    duration_s            double precision NOT NULL CHECK (duration_s >= 0),
    outcome               text             NOT NULL,
    input_uncached_tokens bigint           NOT NULL CHECK (input_uncached_tokens >= 0),
    cache_read_tokens     bigint           NOT NULL CHECK (cache_read_tokens >= 0),
    cache_write_tokens    bigint           NOT NULL CHECK (cache_write_tokens >= 0),
    output_tokens         bigint           NOT NULL CHECK (output_tokens >= 0),
    reasoning_tokens      bigint           NOT NULL CHECK (reasoning_tokens >= 0),
    estimated             boolean          NOT NULL,
    cost_micro_usd        bigint           CHECK (cost_micro_usd >= 0),
    price_version         text,
    recorded_at           timestamptz      NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant, generation_id, attempt),
    CHECK ((cost_micro_usd IS NULL) = (price_version IS NULL))
);
CREATE INDEX usage_time ON inference.usage (tenant, started_at);

-- Calls with a request id, for 24 h. While one is worked on it has a lease, by
-- the database's clock; once it is answered it has an answer instead.
CREATE TABLE inference.request (
    tenant        text        NOT NULL,
    method        text        NOT NULL,
    request_id    text        NOT NULL,
    body          bytea       NOT NULL,
    generation_id text        NOT NULL,
    lease_until   timestamptz,
    -- The events of the answer, byte for byte as they were made.
    answer        bytea,
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant, method, request_id),
    CHECK ((answer IS NULL) = (lease_until IS NOT NULL))
);
CREATE INDEX request_age ON inference.request (created_at);

GRANT USAGE ON SCHEMA inference TO janus_app, janus_worker;

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['usage', 'request'] LOOP
        EXECUTE format('ALTER TABLE inference.%I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE inference.%I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY tenant ON inference.%I TO janus_app '
                       'USING (tenant = current_setting(''janus.tenant'', true)) '
                       'WITH CHECK (tenant = current_setting(''janus.tenant'', true))', name);
    END LOOP;
END $$;

-- Reports read usage; nobody changes or removes it.
GRANT SELECT ON inference.usage TO janus_app;
GRANT SELECT, INSERT, UPDATE ON inference.request TO janus_app;

-- The worker writes what all tenants' calls used in one commit; it reads none of it.
GRANT INSERT ON inference.usage TO janus_worker;
CREATE POLICY book ON inference.usage FOR INSERT TO janus_worker WITH CHECK (true);

-- And it renews, frees and answers the calls of every tenant, and throws old
-- ones away. Bodies and answers stay out of its reach.
GRANT SELECT (tenant, method, request_id, generation_id, lease_until, created_at) ON inference.request TO janus_worker;
GRANT UPDATE (lease_until, answer), DELETE ON inference.request TO janus_worker;
CREATE POLICY find ON inference.request FOR SELECT TO janus_worker USING (true);
CREATE POLICY answer ON inference.request FOR UPDATE TO janus_worker USING (true) WITH CHECK (true);
CREATE POLICY free ON inference.request FOR DELETE TO janus_worker
    USING (lease_until IS NOT NULL OR created_at < now() - interval '24 hours');
