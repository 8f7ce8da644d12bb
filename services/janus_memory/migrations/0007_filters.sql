-- What typed filters ask of units: who spoke, what a memory says about its
-- subject, and its importance as the caller gave it.
--
-- The view names its columns, so it goes and comes again, as in 0001. Row-level
-- security is not forced on the owner while old rows are filled in; the tables
-- are locked until the end.
DROP VIEW memory.searchable;

ALTER TABLE memory.unit ADD COLUMN role smallint;
ALTER TABLE memory.unit ADD COLUMN predicate text NOT NULL DEFAULT '';
ALTER TABLE memory.unit ALTER COLUMN importance TYPE double precision;

ALTER TABLE memory.unit NO FORCE ROW LEVEL SECURITY;
ALTER TABLE memory.turn NO FORCE ROW LEVEL SECURITY;
ALTER TABLE memory.memory NO FORCE ROW LEVEL SECURITY;
UPDATE memory.unit u SET role = t.role FROM memory.turn t
WHERE u.kind = 1 AND t.tenant = u.tenant AND t.space_no = u.space_no AND t.thread = u.thread AND t.position = u.position;
UPDATE memory.unit u SET predicate = m.predicate, importance = m.importance FROM memory.memory m
WHERE u.kind > 1 AND m.tenant = u.tenant AND m.id = u.record_id AND m.version = u.version;
ALTER TABLE memory.unit FORCE ROW LEVEL SECURITY;
ALTER TABLE memory.turn FORCE ROW LEVEL SECURITY;
ALTER TABLE memory.memory FORCE ROW LEVEL SECURITY;

CREATE VIEW memory.searchable AS
    SELECT * FROM memory.unit WHERE tenant = current_setting('janus.tenant', true);
GRANT CREATE ON SCHEMA memory TO janus_search;
ALTER VIEW memory.searchable OWNER TO janus_search;
REVOKE CREATE ON SCHEMA memory FROM janus_search;
REVOKE ALL ON memory.searchable FROM PUBLIC;
GRANT SELECT ON memory.searchable TO janus_app;
