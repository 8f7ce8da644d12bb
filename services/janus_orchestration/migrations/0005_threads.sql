-- Threads and runs are listed, forked, deleted and rolled back; memory is told
-- which turns to forget.

CREATE INDEX thread_used ON orchestration.thread (tenant, updated_at DESC, id DESC);
CREATE INDEX thread_of_subject ON orchestration.thread (tenant, subject, updated_at DESC, id DESC);
CREATE INDEX run_made ON orchestration.run (tenant, created_at DESC, id DESC);
CREATE INDEX run_of_thread ON orchestration.run (tenant, thread_id, created_at DESC, id DESC);
-- Who looks for what goes on does not read all that ever ended.
CREATE INDEX run_going_on ON orchestration.run (tenant, created_at DESC, id DESC) WHERE ended_at IS NULL;

-- Empty when it was not forked.
ALTER TABLE orchestration.thread
    ADD forked_from text NOT NULL DEFAULT '',
    ADD forked_at   text NOT NULL DEFAULT '';

-- Its messages go with its end. Set together with the cancel.
ALTER TABLE orchestration.run ADD rolls_back boolean NOT NULL DEFAULT false;

-- Turns that memory is to forget. It is told again at `final_at`: by then a
-- write of these turns that was on its way has arrived or never will.
CREATE TABLE orchestration.memory_removal (
    tenant       text        NOT NULL,
    id           text        NOT NULL,
    thread_id    text        NOT NULL,
    space        text        NOT NULL,
    message_ids  text[]      NOT NULL,
    attempts     integer     NOT NULL DEFAULT 0,
    next_attempt timestamptz NOT NULL,
    final_at     timestamptz NOT NULL,
    PRIMARY KEY (tenant, id)
);
CREATE INDEX memory_removal_due ON orchestration.memory_removal (next_attempt);

ALTER TABLE orchestration.memory_removal ENABLE ROW LEVEL SECURITY;
ALTER TABLE orchestration.memory_removal FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON orchestration.memory_removal TO janus_app
    USING (tenant = current_setting('janus.tenant'))
    WITH CHECK (tenant = current_setting('janus.tenant'));
CREATE POLICY worker ON orchestration.memory_removal TO janus_worker USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON orchestration.memory_removal TO janus_app;
GRANT SELECT (tenant, id, attempts, next_attempt), UPDATE (attempts, next_attempt)
    ON orchestration.memory_removal TO janus_worker;
