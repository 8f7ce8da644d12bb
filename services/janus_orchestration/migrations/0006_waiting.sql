-- What runs wait for: results of their clients, people's consent, people's answers.
--
-- A run that waits has no owner. Its lease ends when time decides the first of
-- these, or at once when an answer comes, so that it is claimed like any other.

CREATE TABLE orchestration.pending (
    tenant           text        NOT NULL,
    run_id           text        NOT NULL,
    id               text        NOT NULL,
    -- The tool call because of which the run waits.
    step             integer     NOT NULL,
    kind             text        NOT NULL,
    call_id          text        NOT NULL,
    tool             text        NOT NULL,
    arguments        text        NOT NULL,
    -- A consent holds for these arguments only.
    arguments_sha256 bytea       NOT NULL,
    -- Consent to running it once more, after a try of which the outcome is not known.
    is_retry         boolean     NOT NULL,
    -- The reason of an approval, or the question.
    text             text        NOT NULL,
    schema           text        NOT NULL,
    expires_at       timestamptz NOT NULL,
    -- The verdict when nobody gave one in time.
    on_expiry        text        NOT NULL,
    -- Given once, by a person or by time. Null: awaited.
    verdict          text,
    answer           bytea,
    answered_by      text        NOT NULL DEFAULT '',
    -- Null when time gave the verdict.
    answered_at      timestamptz,
    -- The run has gone on with the verdict.
    is_taken         boolean     NOT NULL DEFAULT false,
    PRIMARY KEY (tenant, run_id, id)
);

ALTER TABLE orchestration.pending ENABLE ROW LEVEL SECURITY;
ALTER TABLE orchestration.pending FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON orchestration.pending TO janus_app
    USING (tenant = current_setting('janus.tenant'))
    WITH CHECK (tenant = current_setting('janus.tenant'));
GRANT SELECT, INSERT, UPDATE, DELETE ON orchestration.pending TO janus_app;

-- Waiting is not work: it does not count against the budget of wall time.
ALTER TABLE orchestration.run
    ADD COLUMN waited_s double precision NOT NULL DEFAULT 0,
    ADD COLUMN waiting_since timestamptz;
