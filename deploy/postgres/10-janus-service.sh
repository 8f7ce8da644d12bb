#!/bin/sh
# Runs once, when the database is made: the user that services connect as. It owns nothing and is no
# superuser; it takes the roles janus_app and janus_worker, for which row-level security always holds.
# (Migrations make these roles too, where they are missing.)
set -eu
psql --set=ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
\set password `cat /run/secrets/postgres_service_password`
CREATE ROLE janus_app NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
CREATE ROLE janus_worker NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
CREATE ROLE janus_service LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS NOINHERIT
    PASSWORD :'password';
GRANT janus_app, janus_worker TO janus_service;
SQL
