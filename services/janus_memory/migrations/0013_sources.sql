-- Turns by their ids, whatever thread they are of: a memory's source is named by its id alone.
CREATE INDEX unit_turn ON memory.unit (tenant, space_no, record_id, thread) WHERE kind = 1;
