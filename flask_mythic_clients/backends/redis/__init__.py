"""Redis or Valkey as the key-value store, alone or as a cluster. The only package that imports redis."""

from .store import RedisStore

__all__ = ["RedisStore"]
