"""The routes that a host may open, and what a key may do there."""

from enum import StrEnum
from typing import TypeAlias


class Route(StrEnum):
    """A route, by its name in the settings."""

    DELETE = "delete"
    RESTORE = "restore"
    HISTORY = "history"
    PREVIEW = "preview"
    STATUS = "status"


class Right(StrEnum):
    """What a key may do; but for deletions it is called as the route is."""

    SOFT = "soft"
    HARD = "hard"
    RESTORE = "restore"
    HISTORY = "history"
    PREVIEW = "preview"
    STATUS = "status"

    @classmethod
    def to(cls, route: Route, *, hard: bool) -> "Right":
        """Return what a request of the route needs; the preview of a removal is no removal."""
        if route is Route.DELETE:
            return cls.HARD if hard else cls.SOFT
        return cls(route.value)


EVERY_RIGHT = frozenset(Right)

WithRights: TypeAlias = str | tuple[str, frozenset[Right]]
"""The name or the digest of a key, and what it may; alone where it may do everything."""
