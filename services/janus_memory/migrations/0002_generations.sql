-- A space's vectors by generation: a rebuild fills the next one, on any backend
-- and of any model, beside the one that is searched. `generation` of the space
-- is that one.
ALTER TABLE memory.space ADD COLUMN generation integer NOT NULL DEFAULT 1 CHECK (generation >= 1);
ALTER TABLE memory.vector ADD COLUMN generation integer NOT NULL DEFAULT 1 CHECK (generation >= 1);
ALTER TABLE memory.vector DROP CONSTRAINT vector_pkey;
ALTER TABLE memory.vector ADD PRIMARY KEY (tenant, space_no, generation, view, unit);
