"""Orchestration's adapters: Postgres, Redis, and the services that it calls."""
