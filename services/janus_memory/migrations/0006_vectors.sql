-- Vectors by tenant in hash partitions, and a graph (HNSW) in each for spaces
-- too large to be scanned. The rows are copied once.
--
-- `view` 0 is new: the vector of both views of a unit whose views are equal, as
-- those of everything but turns are. It is stored and compared once.
--
-- `graph`: the row is searched through the graph; otherwise by a scan. A row is
-- in one of the two, so a search of both misses none, whatever is under way.
-- `graphed` of a space is the generation that goes into the graph; 0: none.
ALTER TABLE memory.space ADD COLUMN graphed integer NOT NULL DEFAULT 0;

ALTER TABLE memory.vector RENAME TO vector_before;
ALTER TABLE memory.vector_before RENAME CONSTRAINT vector_pkey TO vector_before_pkey;

CREATE TABLE memory.vector (
    tenant        text        NOT NULL DEFAULT current_setting('janus.tenant'),
    space_no      bigint      NOT NULL,
    generation    integer     NOT NULL DEFAULT 1 CHECK (generation >= 1),
    view          smallint    NOT NULL CHECK (view BETWEEN 0 AND 2),
    unit          bigint      NOT NULL,
    version       bigint      NOT NULL,
    kind          smallint    NOT NULL,
    graph         boolean     NOT NULL DEFAULT false,
    dimensions    integer     NOT NULL,
    subject       text        NOT NULL,
    agent         text        NOT NULL,
    thread        text        NOT NULL,
    recorded_at   timestamptz NOT NULL,
    superseded_at timestamptz,
    valid_from    timestamptz,
    valid_to      timestamptz,
    expires_at    timestamptz,
    embedding     vector      NOT NULL CHECK (vector_dims(embedding) = dimensions),
    PRIMARY KEY (tenant, space_no, generation, view, unit)
) PARTITION BY HASH (tenant);
ALTER TABLE memory.vector ALTER COLUMN embedding SET STORAGE MAIN;

DO $$
BEGIN
    FOR place IN 0..7 LOOP
        EXECUTE format('CREATE TABLE memory.%I PARTITION OF memory.vector '
                       'FOR VALUES WITH (MODULUS 8, REMAINDER %s)', 'vector_' || place, place);
    END LOOP;
END $$;

-- An owner who is no superuser sees the rows for this statement.
ALTER TABLE memory.vector_before NO FORCE ROW LEVEL SECURITY;
INSERT INTO memory.vector (tenant, space_no, generation, view, unit, version, kind, dimensions, subject, agent, thread,
                           recorded_at, superseded_at, valid_from, valid_to, expires_at, embedding)
SELECT v.tenant, v.space_no, v.generation, CASE WHEN o.unit IS NULL THEN v.view ELSE 0 END, v.unit, v.version, v.kind,
       v.dimensions, v.subject, v.agent, v.thread, v.recorded_at, v.superseded_at, v.valid_from, v.valid_to,
       v.expires_at, v.embedding
FROM memory.vector_before v
LEFT JOIN memory.vector_before o ON o.tenant = v.tenant AND o.space_no = v.space_no AND o.generation = v.generation
     AND o.unit = v.unit AND o.view = 3 - v.view AND o.embedding = v.embedding
WHERE o.unit IS NULL OR v.view = 1;
DROP TABLE memory.vector_before;

-- What a search of a space in the graph has to scan, and what the graph takes next.
CREATE INDEX vector_loose ON memory.vector (tenant, space_no, generation, view, unit) WHERE NOT graph;
-- A graph has a fixed number of dimensions. Spaces of others are always scanned.
DO $$
DECLARE
    size integer;
BEGIN
    FOREACH size IN ARRAY ARRAY[256, 384, 512, 768, 1024, 1536] LOOP
        EXECUTE format('CREATE INDEX %I ON memory.vector USING hnsw ((embedding::vector(%s)) vector_ip_ops) '
                       'WHERE graph AND dimensions = %s', 'vector_graph_' || size, size, size);
    END LOOP;
END $$;

-- A partition is a table too: nobody reads past the policy by naming one.
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT relname FROM pg_class
                WHERE relnamespace = 'memory'::regnamespace AND relkind IN ('r', 'p')
                  AND (oid = 'memory.vector'::regclass
                       OR oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'memory.vector'::regclass)) LOOP
        EXECUTE format('ALTER TABLE memory.%I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE memory.%I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY tenant ON memory.%I TO janus_app '
                       'USING (tenant = current_setting(''janus.tenant'', true)) '
                       'WITH CHECK (tenant = current_setting(''janus.tenant'', true))', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON memory.%I TO janus_app', name);
    END LOOP;
END $$;

-- The worker looks for spaces that outgrew scanning; it reads their sizes alone.
GRANT SELECT (tenant, space_no, units) ON memory.statistics TO janus_worker;
CREATE POLICY outgrown ON memory.statistics FOR SELECT TO janus_worker USING (true);
