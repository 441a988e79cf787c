"""The columns of our own model, for hosts that want them."""

import json

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column


class ClientMixin:
    """A client with an id, a name and a status; its entry `client:{id}` is its JSON document."""

    id: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(255), default="")
    status: Mapped[bool] = mapped_column(default=True)

    def entry_values(self) -> dict[str, str]:
        """Return the value of `client:{id}`: the JSON document with `id`, `name` and `status`."""
        document = {"id": self.id, "name": self.name, "status": self.status}
        return {f"client:{self.id}": json.dumps(document)}
