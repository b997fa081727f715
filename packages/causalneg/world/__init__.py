"""The embedded world: typed facts, passages that state them, questions, and exact relevance."""

from __future__ import annotations

from causalneg.world.edits import Edit
from causalneg.world.language import Fact
from causalneg.world.needs import Need, NeedRequirement, Pattern
from causalneg.world.world import World, WorldConfig, find_world, make_world

__all__ = [
    "Edit",
    "Fact",
    "Need",
    "NeedRequirement",
    "Pattern",
    "World",
    "WorldConfig",
    "find_world",
    "make_world",
]
