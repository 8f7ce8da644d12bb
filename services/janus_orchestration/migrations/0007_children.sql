-- Runs that runs start: an agent that is asked works in a thread of its own, and
-- its end is the answer that the run above waits for.

ALTER TABLE orchestration.pending ADD COLUMN child_run text;
CREATE UNIQUE INDEX pending_child ON orchestration.pending (tenant, child_run) WHERE child_run IS NOT NULL;

-- The run because of which there is a thread; null for conversations of clients.
ALTER TABLE orchestration.thread ADD COLUMN parent_run text;
CREATE INDEX thread_parent ON orchestration.thread (tenant, parent_run) WHERE parent_run IS NOT NULL;

-- Nobody waits for the run any more: a worker has it cancelled.
ALTER TABLE orchestration.run_lease ADD COLUMN orphaned boolean NOT NULL DEFAULT false;
CREATE INDEX run_lease_orphaned ON orchestration.run_lease (run_id) WHERE orphaned;
