-- Agents, threads, and the journal of runs.
--
-- Every table is a tenant's: row-level security is forced on all of them, and
-- janus_app sees one tenant in a transaction. janus_worker works across
-- tenants on two tables that hold names and times but nothing that a tenant
-- wrote: who works on which run, and which thread owes memory its turns.

CREATE SCHEMA orchestration;
GRANT USAGE ON SCHEMA orchestration TO janus_app, janus_worker;

-- An agent's newest version; locked by PutAgent.
CREATE TABLE orchestration.agent (
    tenant     text        NOT NULL,
    name       text        NOT NULL,
    version    bigint      NOT NULL,
    PRIMARY KEY (tenant, name)
);

CREATE TABLE orchestration.agent_version (
    tenant     text        NOT NULL,
    name       text        NOT NULL,
    version    bigint      NOT NULL,
    spec       jsonb       NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (tenant, name, version)
);

CREATE TABLE orchestration.thread (
    tenant          text        NOT NULL,
    id              text        NOT NULL,
    agent           text        NOT NULL,
    subject         text        NOT NULL,
    title           text        NOT NULL,
    metadata        text        NOT NULL,
    created_at      timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL,
    -- Place of the newest committed message; 0 for none.
    last_position   bigint      NOT NULL DEFAULT 0,
    -- Messages up to here are in memory, in the outbox, or not meant for it.
    memory_position bigint      NOT NULL DEFAULT 0,
    -- The run whose turn it is. One at a time.
    active_run      text,
    PRIMARY KEY (tenant, id)
);

CREATE TABLE orchestration.message (
    tenant     text        NOT NULL,
    thread_id  text        NOT NULL,
    id         text        NOT NULL,
    -- Null while the run that brought it waits for its turn.
    position   bigint,
    -- Order among the messages of a run that waits.
    ordinal    integer     NOT NULL DEFAULT 0,
    role       text        NOT NULL,
    name       text        NOT NULL,
    -- Its text parts, joined.
    text       text        NOT NULL,
    -- janus.content.v1.Message, as it was committed.
    content    bytea       NOT NULL,
    -- The run that it came with (input) or that made it.
    run_id     text,
    is_output  boolean     NOT NULL DEFAULT false,
    PRIMARY KEY (tenant, thread_id, id),
    UNIQUE (tenant, thread_id, position)
);
CREATE INDEX message_of_run ON orchestration.message (tenant, run_id) WHERE run_id IS NOT NULL;

CREATE TABLE orchestration.run (
    tenant               text        NOT NULL,
    id                   text        NOT NULL,
    thread_id            text        NOT NULL,
    agent                text        NOT NULL,
    agent_version        bigint      NOT NULL,
    state                text        NOT NULL,
    -- What was asked beside the messages: model, budgets, labels.
    options              jsonb       NOT NULL,
    -- Whom the run acts for.
    subject              text        NOT NULL,
    cancel_on_disconnect boolean     NOT NULL DEFAULT false,
    parent_run           text,
    -- The owner that may write; every write of an owner checks it.
    epoch                bigint      NOT NULL,
    -- Counts the owner's commits, so that one whose answer was lost is not applied twice.
    revision             bigint      NOT NULL DEFAULT 0,
    -- Newest event in the table `event`.
    last_sequence        bigint      NOT NULL,
    -- No event with a greater sequence was ever sent by any owner.
    reserved_sequence    bigint      NOT NULL,
    -- Events were sent that Redis does not have.
    stream_broken        boolean     NOT NULL DEFAULT false,
    takeovers            integer     NOT NULL DEFAULT 0,
    created_at           timestamptz NOT NULL,
    started_at           timestamptz,
    ended_at             timestamptz,
    usage                jsonb,
    finish_reason        integer     NOT NULL DEFAULT 0,
    -- google.rpc.Status of a run that failed.
    error                bytea,
    cancel_reason        text,
    -- Order among the waiting runs of a thread.
    enqueued             bigint      GENERATED ALWAYS AS IDENTITY,
    PRIMARY KEY (tenant, id)
);
CREATE INDEX run_waiting ON orchestration.run (tenant, thread_id, enqueued) WHERE state = 'queued';

-- First sequence of every epoch after the first.
CREATE TABLE orchestration.run_epoch (
    tenant         text   NOT NULL,
    run_id         text   NOT NULL,
    epoch          bigint NOT NULL,
    first_sequence bigint NOT NULL,
    PRIMARY KEY (tenant, run_id, epoch)
);

CREATE TABLE orchestration.step (
    tenant         text        NOT NULL,
    run_id         text        NOT NULL,
    index          integer     NOT NULL,
    kind           text        NOT NULL,
    attempts       integer     NOT NULL,
    -- The event before the step's first one: where a reader goes back to when it begins again.
    after_epoch    bigint      NOT NULL,
    after_sequence bigint      NOT NULL,
    started_at     timestamptz NOT NULL,
    ended_at       timestamptz,
    usage          jsonb,
    error          bytea,
    summary        text        NOT NULL DEFAULT '',
    PRIMARY KEY (tenant, run_id, index)
);

-- Durable events: all but a model's deltas.
CREATE TABLE orchestration.event (
    tenant   text    NOT NULL,
    run_id   text    NOT NULL,
    sequence bigint  NOT NULL,
    epoch    bigint  NOT NULL,
    kind     text    NOT NULL,
    terminal boolean NOT NULL,
    -- janus.orchestration.v1.RunEvent, byte for byte as sent.
    content  bytea   NOT NULL,
    PRIMARY KEY (tenant, run_id, sequence)
);
CREATE UNIQUE INDEX event_terminal_once ON orchestration.event (tenant, run_id) WHERE terminal;

-- Who works on a run until when, by the database's clock. A row exists while
-- the run can be worked on; without an owner it waits to be claimed.
CREATE TABLE orchestration.run_lease (
    run_id     text        PRIMARY KEY,
    tenant     text        NOT NULL,
    owner      text,
    epoch      bigint      NOT NULL,
    expires_at timestamptz NOT NULL,
    -- A cancel was asked for; the owner's heartbeat sees it when a notification got lost.
    cancel     boolean     NOT NULL DEFAULT false
);
CREATE INDEX run_lease_expiry ON orchestration.run_lease (expires_at);

-- Threads whose newest turns memory has yet to get, in order of position.
CREATE TABLE orchestration.memory_outbox (
    tenant        text        NOT NULL,
    thread_id     text        NOT NULL,
    from_position bigint      NOT NULL,
    to_position   bigint      NOT NULL,
    run_id        text        NOT NULL,
    space         text        NOT NULL,
    attempts      integer     NOT NULL DEFAULT 0,
    next_attempt  timestamptz NOT NULL,
    -- Memory refused these turns for good: nobody tries again, and why.
    dead_at       timestamptz,
    reason        text        NOT NULL DEFAULT '',
    PRIMARY KEY (tenant, thread_id, from_position)
);
CREATE INDEX memory_outbox_due ON orchestration.memory_outbox (next_attempt) WHERE dead_at IS NULL;

-- Answers to writes with a request id, for 24 h.
CREATE TABLE orchestration.request (
    tenant     text        NOT NULL,
    method     text        NOT NULL,
    request_id text        NOT NULL,
    body_hash  bytea       NOT NULL,
    response   bytea       NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, method, request_id)
);
CREATE INDEX request_age ON orchestration.request (created_at);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY[
        'agent', 'agent_version', 'thread', 'message', 'run', 'run_epoch', 'step', 'event',
        'run_lease', 'memory_outbox', 'request'
    ] LOOP
        EXECUTE format('ALTER TABLE orchestration.%I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE orchestration.%I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format(
            'CREATE POLICY tenant ON orchestration.%I TO janus_app '
            'USING (tenant = current_setting(''janus.tenant'')) '
            'WITH CHECK (tenant = current_setting(''janus.tenant''))', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON orchestration.%I TO janus_app', name);
    END LOOP;
    FOREACH name IN ARRAY ARRAY['run_lease', 'memory_outbox', 'request'] LOOP
        EXECUTE format('CREATE POLICY worker ON orchestration.%I TO janus_worker USING (true) WITH CHECK (true)', name);
    END LOOP;
END $$;

GRANT SELECT, UPDATE ON orchestration.run_lease TO janus_worker;
GRANT SELECT, UPDATE ON orchestration.memory_outbox TO janus_worker;
-- To throw old ones away; the answers themselves stay out of reach.
GRANT SELECT (created_at), DELETE ON orchestration.request TO janus_worker;
