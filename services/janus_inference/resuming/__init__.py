"""Resumable generations: kept as they go on, followed from any replica, ended exactly once."""

from janus_inference.resuming.resumables import Resumables

__all__ = ["Resumables"]
