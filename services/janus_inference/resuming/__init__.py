"""Resumable generations: kept as they go on, followed from any replica, ended exactly once."""

from janus_inference.resuming.resumables import Resumables
from janus_inference.resuming.settling import Settling
from janus_inference.resuming.sweeper import Sweeper

__all__ = ["Resumables", "Settling", "Sweeper"]
