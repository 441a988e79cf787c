"""What a contestant is told by its environment; the same for all."""

import hmac
import os
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

ACTOR = "ops"
THREADS = 8
POOL: dict[str, Any] = {"pool_size": THREADS, "max_overflow": 0}
"""The options of SQLAlchemy's pool: a connection for each thread of a worker."""


@dataclass(frozen=True)
class Settings:
    """The stores, and the digest of the one admin key."""

    database_url: str
    redis_url: str
    key_digest: str = field(repr=False)

    @classmethod
    def from_environment(cls) -> "Settings":
        """Read what `environment` wrote."""
        names = ("DATABASE_URL", "REDIS_URL", "ADMIN_KEY_DIGEST")
        return cls(*(os.environ[name] for name in names))

    def environment(self) -> dict[str, str]:
        """Return what a server's process is given."""
        return {
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "ADMIN_KEY_DIGEST": self.key_digest,
        }

    def is_admin(self, key: str) -> bool:
        """Whether this is the admin key; takes the same time for every wrong one."""
        return hmac.compare_digest(f"sha256:{sha256(key.encode()).hexdigest()}", self.key_digest)
