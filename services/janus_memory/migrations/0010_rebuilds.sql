-- Rebuilding a space's vectors beside those that are searched.
--
-- A space has one generation beside its live one at most: the one that is built
-- (`phase` 1), and after the switch the one that was live before, until its
-- vectors are removed (2). `since` is when its phase began.
CREATE TABLE memory.generation (
    tenant       text        NOT NULL DEFAULT current_setting('janus.tenant'),
    space_no     bigint      NOT NULL,
    generation   integer     NOT NULL CHECK (generation >= 1),
    phase        smallint    NOT NULL CHECK (phase IN (1, 2)),
    backend      smallint    NOT NULL CHECK (backend IN (1, 2)),
    model        text        NOT NULL,
    dimensions   integer     NOT NULL CHECK (dimensions BETWEEN 1 AND 4096),
    operation_id text        NOT NULL,
    since        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, space_no)
);

-- Numbers of generations are used once: a write to one that was given up and
-- comes late must not meet another.
ALTER TABLE memory.space ADD COLUMN last_generation integer NOT NULL DEFAULT 1;

-- Units that the generation in building has yet to learn. They come from the
-- records, some at a time, and from the indexer with each outbox row that it
-- finishes. `leased_until`: their texts may be in somebody's hands until then.
CREATE TABLE memory.rebuild (
    tenant       text        NOT NULL DEFAULT current_setting('janus.tenant'),
    space_no     bigint      NOT NULL,
    id           bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    unit         bigint      NOT NULL,
    leased_until timestamptz,
    PRIMARY KEY (tenant, space_no, id)
);
CREATE INDEX rebuild_unit ON memory.rebuild (tenant, space_no, unit);

-- Whose records an operation is about: their erasure removes it, with what was
-- asked and what came of it.
ALTER TABLE memory.operation ADD COLUMN subjects text[] NOT NULL DEFAULT '{}';

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['generation', 'rebuild'] LOOP
        EXECUTE format('ALTER TABLE memory.%I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE memory.%I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY tenant ON memory.%I TO janus_app '
                       'USING (tenant = current_setting(''janus.tenant'', true)) '
                       'WITH CHECK (tenant = current_setting(''janus.tenant'', true))', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON memory.%I TO janus_app', name);
    END LOOP;
END $$;
