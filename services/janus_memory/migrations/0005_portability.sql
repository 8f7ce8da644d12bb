-- Records of an import until their checksum has been checked: pieces of some
-- MiB, gone when the import ends. What a process that was killed left is
-- removed by age.
CREATE TABLE memory.import_part (
    tenant     text        NOT NULL DEFAULT current_setting('janus.tenant'),
    import     uuid        NOT NULL,
    number     integer     NOT NULL,
    records    bytea       NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, import, number)
);
ALTER TABLE memory.import_part ALTER COLUMN records SET STORAGE EXTERNAL;
CREATE INDEX import_part_age ON memory.import_part (created_at);

ALTER TABLE memory.import_part ENABLE ROW LEVEL SECURITY;
ALTER TABLE memory.import_part FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON memory.import_part TO janus_app
    USING (tenant = current_setting('janus.tenant', true))
    WITH CHECK (tenant = current_setting('janus.tenant', true));
GRANT SELECT, INSERT, UPDATE, DELETE ON memory.import_part TO janus_app;
-- No call lasts longer than a day.
GRANT SELECT (created_at), DELETE ON memory.import_part TO janus_worker;
CREATE POLICY expire ON memory.import_part TO janus_worker USING (created_at < now() - interval '25 hours');

-- Every batch of the indexer adds to the counts of common terms: room for new
-- versions of a row on its own page.
ALTER TABLE memory.lexicon SET (fillfactor = 70);
