"""What is asked of a contestant, and what must come back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import wire
from .contestants import BASE, Contestant


@dataclass(frozen=True)
class Scenario:
    """A kind of request; `status` and `body` are its answer by the wire contract."""

    name: str
    status: int
    body: Any
    query: str = ""
    deletes: bool = False
    knows_key: bool = True
    only: frozenset[str] | None = None
    """The contestants of which it is asked; all where it is None."""

    def path(self, id: str) -> str:
        """Return where the request for a client goes."""
        return f"/api/v1/clients/{id}{self.query}"

    def asks(self, contestant: Contestant) -> bool:
        """Whether it is asked of this one."""
        return self.only is None or contestant.name in self.only

    def answer(self, contestant: Contestant) -> tuple[int, Any]:
        """Return what must come back; from the floor it is always the same."""
        return (self.status, self.body) if contestant.changes_stores else (200, {})


ALL: Sequence[Scenario] = (
    Scenario("hard", 200, wire.DELETED[True], "?hard=true", deletes=True),
    Scenario("soft", 200, wire.DELETED[False], deletes=True),
    Scenario("refused", 401, wire.UNAUTHORIZED, knows_key=False, only=frozenset({"package", BASE, "empty"})),
    Scenario("missing", 404, wire.NOT_FOUND, "?hard=true", only=frozenset({"package", BASE})),
)
