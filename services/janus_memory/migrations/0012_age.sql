-- Memories by age, without the tenant in front: a space's number is no other
-- tenant's either. Of a tenant that its statistics do not know yet the planner
-- expects one row, and so preferred this index, being smaller, to the primary
-- key: to find a memory by its id it read all of the tenant's.
DROP INDEX memory.memory_age;
CREATE INDEX memory_age ON memory.memory (space_no, recorded_at);
