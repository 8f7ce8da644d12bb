"""Drivers behind memory's ports: Postgres, pgvector, Chroma, Redis, embedders."""
