"""Resumable generations: kept as they go on, followed from any replica, ended exactly once."""

from janus_inference.resuming.resumables import Resumables
from janus_inference.resuming.settling import Settling

__all__ = ["Resumables", "Settling"]
