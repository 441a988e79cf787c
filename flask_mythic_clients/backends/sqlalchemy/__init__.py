"""SQLite, PostgreSQL and MariaDB through the host's engine, however it has one.

The only package that imports sqlalchemy and flask_sqlalchemy.
"""

from .mixin import ClientMixin
from .repository import SQLAlchemyRepository
from .status import Status

__all__ = ["ClientMixin", "SQLAlchemyRepository", "Status"]
