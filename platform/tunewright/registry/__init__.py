"""Immutable versions of models, aliases that move between them, and their lineage. Row 4."""

from tunewright.registry.store import Registry
from tunewright.registry.version import Version

__all__ = ["Registry", "Version"]
