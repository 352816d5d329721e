"""How closely data is kept."""

from __future__ import annotations

from enum import IntEnum


class Classification(IntEnum):
    """From what anybody may use to what harms people when it gets out; the values are those of ``suanli.v1.Classification``."""

    PUBLIC = 1
    INTERNAL = 2
    RESTRICTED = 3
    SENSITIVE = 4

    @property
    def needs_isolation(self) -> bool:
        """Whether such data goes only to nodes that keep jobs apart."""
        return self is Classification.SENSITIVE
