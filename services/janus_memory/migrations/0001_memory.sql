-- Memory: what was said and what is remembered, the search documents derived
-- from both, vectors, and the outbox that keeps derived indexes in step.
--
-- Every key starts with the tenant. Every table has row-level security, forced:
-- a statement sees and writes the rows of `janus.tenant` only, also when its
-- WHERE forgets to say so; without the setting there are no rows at all.

CREATE SCHEMA IF NOT EXISTS memory;

-- Owner of the view `memory.searchable`, nothing else; see there.
DO $$
BEGIN
    CREATE ROLE janus_search NOLOGIN NOBYPASSRLS;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL; -- made by another database of this cluster
END $$;

-- A space: records that are searched together. `number` names it in lexemes
-- and derived tables; `incarnation` outside of this database, so that a space
-- of an older database is never taken for this one.
CREATE TABLE memory.space (
    tenant       text        NOT NULL DEFAULT current_setting('janus.tenant'),
    name         text        NOT NULL,
    number       bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    incarnation  uuid        NOT NULL DEFAULT gen_random_uuid(),
    backend      smallint    NOT NULL CHECK (backend IN (1, 2)),
    model        text        NOT NULL,
    dimensions   integer     NOT NULL CHECK (dimensions BETWEEN 1 AND 4096),
    weights      jsonb       NOT NULL DEFAULT '{}',
    description  text        NOT NULL DEFAULT '',
    version      bigint      NOT NULL DEFAULT 1,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, name),
    UNIQUE (tenant, number)
);

-- The end of a thread. Its row lock puts concurrent appends in order.
CREATE TABLE memory.thread (
    tenant           text        NOT NULL DEFAULT current_setting('janus.tenant'),
    space_no         bigint      NOT NULL,
    id               text        NOT NULL,
    incarnation      uuid        NOT NULL DEFAULT gen_random_uuid(),
    last_position    bigint      NOT NULL DEFAULT 0,
    session          integer     NOT NULL DEFAULT 0,
    last_occurred_at timestamptz,
    created_at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, space_no, id)
);

-- Episodes: what was said, never changed. `content` is the message's protobuf
-- bytes, because opaque parts must come back byte for byte.
CREATE TABLE memory.turn (
    tenant        text        NOT NULL DEFAULT current_setting('janus.tenant'),
    space_no      bigint      NOT NULL,
    thread        text        NOT NULL,
    position      bigint      NOT NULL CHECK (position >= 1),
    id            text        NOT NULL,
    subject       text        NOT NULL,
    agent         text        NOT NULL,
    role          smallint    NOT NULL,
    speaker       text        NOT NULL,
    content       bytea       NOT NULL,
    text          text        NOT NULL,
    tokens        integer     NOT NULL,
    calls         text[]      NOT NULL DEFAULT '{}',
    results       text[]      NOT NULL DEFAULT '{}',
    session       integer     NOT NULL,
    occurred_at   timestamptz NOT NULL,
    recorded_at   timestamptz NOT NULL DEFAULT now(),
    metadata_json text        NOT NULL DEFAULT '',
    digest        bytea       NOT NULL,
    PRIMARY KEY (tenant, space_no, thread, position),
    UNIQUE (tenant, space_no, thread, id)
);

-- Memories by version. A version's text never changes; `superseded_at` is set
-- once, when another version takes its place.
CREATE TABLE memory.memory (
    tenant          text        NOT NULL DEFAULT current_setting('janus.tenant'),
    id              text        NOT NULL,
    version         bigint      NOT NULL CHECK (version >= 1),
    space_no        bigint      NOT NULL,
    kind            smallint    NOT NULL CHECK (kind BETWEEN 2 AND 6),
    text            text        NOT NULL,
    subject         text        NOT NULL,
    agent           text        NOT NULL,
    thread          text        NOT NULL,
    predicate       text        NOT NULL,
    provenance_json text        NOT NULL DEFAULT '[]',
    valid_from      timestamptz,
    valid_to        timestamptz,
    expires_at      timestamptz,
    importance      double precision NOT NULL,
    metadata_json   text        NOT NULL DEFAULT '',
    embedding       real[],
    digest          bytea       NOT NULL,
    changed_by      text        NOT NULL,
    recorded_at     timestamptz NOT NULL DEFAULT now(),
    superseded_at   timestamptz,
    PRIMARY KEY (tenant, id, version)
);
-- One current memory of a text, kind and scope; and one current version of an id.
CREATE UNIQUE INDEX memory_current_digest ON memory.memory (tenant, space_no, digest) WHERE superseded_at IS NULL;
CREATE UNIQUE INDEX memory_current_id ON memory.memory (tenant, id) WHERE superseded_at IS NULL;

-- What Recall ranks: one row a turn or version of a memory, written with it.
-- `terms` are lexemes, each with the space's number in front: so the inverted
-- index never walks another space's postings. `bag` is the sequence of the
-- line's hashed tokens (uint32, little endian), from which BM25 of any window
-- is computed; nothing about neighbours is stored, so nothing goes stale when
-- the next turn arrives.
CREATE TABLE memory.unit (
    tenant        text        NOT NULL DEFAULT current_setting('janus.tenant'),
    space_no      bigint      NOT NULL,
    unit          bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    kind          smallint    NOT NULL,
    record_id     text        NOT NULL,
    version       bigint      NOT NULL,
    subject       text        NOT NULL,
    agent         text        NOT NULL,
    thread        text        NOT NULL,
    position      bigint      NOT NULL,
    session       integer     NOT NULL,
    speaker       text        NOT NULL,
    occurred_at   timestamptz NOT NULL,
    recorded_at   timestamptz NOT NULL DEFAULT now(),
    superseded_at timestamptz,
    valid_from    timestamptz,
    valid_to      timestamptz,
    expires_at    timestamptz,
    importance    real        NOT NULL,
    metadata      jsonb,
    terms         tsvector    NOT NULL,
    bag           bytea       NOT NULL,
    PRIMARY KEY (tenant, space_no, unit)
);
CREATE INDEX unit_terms ON memory.unit USING gin (terms);
CREATE INDEX unit_position ON memory.unit (tenant, space_no, thread, position) WHERE kind = 1;
CREATE INDEX unit_record ON memory.unit (tenant, space_no, record_id) WHERE kind > 1;

-- Statistics of BM25, kept by the indexer, one space at a time.
CREATE TABLE memory.lexicon (
    tenant   text    NOT NULL DEFAULT current_setting('janus.tenant'),
    space_no bigint  NOT NULL,
    term     text    NOT NULL,
    units    bigint  NOT NULL,
    PRIMARY KEY (tenant, space_no, term)
);
CREATE TABLE memory.statistics (
    tenant   text    NOT NULL DEFAULT current_setting('janus.tenant'),
    space_no bigint  NOT NULL,
    units    bigint  NOT NULL,
    tokens   bigint  NOT NULL,
    PRIMARY KEY (tenant, space_no)
);

-- Vectors of spaces whose backend is pgvector. The dimension differs by space,
-- so the column has none and the check is against the row's own number.
-- Attributes that searches filter by are repeated here, so that a scan needs
-- no join.
CREATE TABLE memory.vector (
    tenant        text        NOT NULL DEFAULT current_setting('janus.tenant'),
    space_no      bigint      NOT NULL,
    view          smallint    NOT NULL,
    unit          bigint      NOT NULL,
    version       bigint      NOT NULL,
    kind          smallint    NOT NULL,
    subject       text        NOT NULL,
    agent         text        NOT NULL,
    thread        text        NOT NULL,
    recorded_at   timestamptz NOT NULL,
    superseded_at timestamptz,
    valid_from    timestamptz,
    valid_to      timestamptz,
    expires_at    timestamptz,
    dimensions    integer     NOT NULL,
    embedding     vector      NOT NULL CHECK (vector_dims(embedding) = dimensions),
    PRIMARY KEY (tenant, space_no, view, unit)
);
ALTER TABLE memory.vector ALTER COLUMN embedding SET STORAGE MAIN;

-- What derived indexes still have to learn. Written in the record's own
-- transaction; gone when it is applied. `lease` is who works on it, until
-- `leased_until`; `dead_at` is set when it failed too often by its own fault.
CREATE TABLE memory.outbox (
    tenant       text        NOT NULL DEFAULT current_setting('janus.tenant'),
    id           bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    space_no     bigint      NOT NULL,
    unit         bigint      NOT NULL,
    counted      boolean     NOT NULL DEFAULT false,
    attempts     integer     NOT NULL DEFAULT 0,
    available_at timestamptz NOT NULL DEFAULT now(),
    lease        uuid,
    leased_until timestamptz,
    error        text        NOT NULL DEFAULT '',
    dead_at      timestamptz,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, space_no, id)
);
CREATE INDEX outbox_due ON memory.outbox (available_at, id) WHERE dead_at IS NULL;
CREATE INDEX outbox_leased ON memory.outbox (tenant, space_no, leased_until) WHERE lease IS NOT NULL;

-- Units that are gone. An index entry of a tombstone is removed and never put back.
CREATE TABLE memory.tombstone (
    tenant     text        NOT NULL DEFAULT current_setting('janus.tenant'),
    space_no   bigint      NOT NULL,
    unit       bigint      NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, space_no, unit)
);

-- Answers of writes by request id, kept 24 h.
CREATE TABLE memory.request (
    tenant     text        NOT NULL DEFAULT current_setting('janus.tenant'),
    method     text        NOT NULL,
    id         text        NOT NULL,
    body       bytea       NOT NULL,
    answer     jsonb       NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, method, id)
);
CREATE INDEX request_age ON memory.request (created_at);

GRANT USAGE ON SCHEMA memory TO janus_app, janus_worker, janus_search;

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['space', 'thread', 'turn', 'memory', 'unit', 'lexicon', 'statistics',
                                'vector', 'outbox', 'tombstone', 'request'] LOOP
        EXECUTE format('ALTER TABLE memory.%I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE memory.%I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY tenant ON memory.%I TO janus_app '
                       'USING (tenant = current_setting(''janus.tenant'', true)) '
                       'WITH CHECK (tenant = current_setting(''janus.tenant'', true))', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON memory.%I TO janus_app', name);
    END LOOP;
END $$;

-- The worker finds and leases outbox rows of every tenant. It reads no text:
-- the rows' units are then read as the tenant they belong to.
GRANT SELECT ON memory.outbox TO janus_worker;
GRANT UPDATE (lease, leased_until) ON memory.outbox TO janus_worker;
CREATE POLICY claim ON memory.outbox TO janus_worker USING (true) WITH CHECK (true);
-- And it removes stored answers that are past their time, by age alone.
GRANT SELECT (created_at), DELETE ON memory.request TO janus_worker;
CREATE POLICY expire ON memory.request TO janus_worker USING (created_at < now() - interval '24 hours');

-- What full-text search reads. Under row-level security Postgres uses an index
-- for leakproof operators only, and `@@` is not one: searching memory.unit
-- directly reads every row of the tenant. The view's owner sees the table by a
-- policy without a condition and the tenant's condition is part of the view
-- itself, so the inverted index is used and a WHERE that forgets the tenant
-- still finds the tenant's rows only.
CREATE POLICY search ON memory.unit FOR SELECT TO janus_search USING (true);
GRANT SELECT ON memory.unit TO janus_search;
CREATE VIEW memory.searchable AS
    SELECT * FROM memory.unit WHERE tenant = current_setting('janus.tenant', true);
DO $$
BEGIN
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        EXECUTE 'GRANT janus_search TO CURRENT_USER WITH SET TRUE';
    END IF;
END $$;
GRANT CREATE ON SCHEMA memory TO janus_search;
ALTER VIEW memory.searchable OWNER TO janus_search;
REVOKE CREATE ON SCHEMA memory FROM janus_search;
REVOKE ALL ON memory.searchable FROM PUBLIC;
GRANT SELECT ON memory.searchable TO janus_app;
