"""Conversations as durable runs: recall, model, store."""
