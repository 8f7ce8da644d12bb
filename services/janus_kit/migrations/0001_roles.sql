-- What every service of Janus stands on: two roles, the vector type, and the
-- ledger of migrations. Needs Postgres 16 or later, and pgvector.

-- Roles belong to the whole cluster: an administrator may have made them, and
-- another database's migration may be making them at this moment.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'janus_app') THEN
        CREATE ROLE janus_app NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL;
END $$;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'janus_worker') THEN
        CREATE ROLE janus_worker NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL;
END $$;

-- The user that services connect as takes these roles with SET ROLE. A
-- superuser may do so already.
DO $$
BEGIN
    IF NOT pg_has_role(current_user, 'janus_app', 'SET') THEN
        GRANT janus_app TO CURRENT_USER;
    END IF;
    IF NOT pg_has_role(current_user, 'janus_worker', 'SET') THEN
        GRANT janus_worker TO CURRENT_USER;
    END IF;
END $$;

CREATE EXTENSION IF NOT EXISTS vector;

CREATE SCHEMA janus_meta;

CREATE TABLE janus_meta.migration (
    package    text        NOT NULL,
    number     integer     NOT NULL,
    name       text        NOT NULL,
    checksum   text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (package, number)
);
