"""Admin keys. The only importer of flask_httpauth."""

import binascii
import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from flask import Response
from flask_httpauth import HTTPTokenAuth
from werkzeug.datastructures import Authorization

from .model import is_actor
from .rights import EVERY_RIGHT, Right, WithRights

VerifyKey: TypeAlias = Callable[[str], str | tuple[str, Iterable[str]] | None]
"""Bearer token → the name of its owner, who may do everything; or that and the rights; or None."""


@dataclass(frozen=True)
class Caller:
    """Who has presented a key, and what they may do."""

    name: str
    may: frozenset[Right]

    @classmethod
    def of(cls, verified: Any) -> "Caller | None":
        """Read what a `VerifyKey` has returned; None where that is malformed, for unsure means closed.

        An unknown right gives nothing.
        """
        is_pair = isinstance(verified, tuple) and len(verified) == 2
        name, may = verified if is_pair else (verified, EVERY_RIGHT)
        # A text is an iterable of its letters; a mapping may say `"hard": False`.
        if not is_actor(name) or isinstance(may, (str, bytes, Mapping)):
            return None
        try:
            given = frozenset(may)
        except Exception:  # it is not iterable, or failed meanwhile
            return None
        return cls(name, EVERY_RIGHT & given)


def create_key() -> str:
    """Return a new admin key: `mythic_`, 32 random bytes, and a CRC-32 that tells a cut-off copy.

    All its characters are allowed in a bearer token (RFC 6750); none is `=`, which would be read as
    the start of parameters.
    """
    body = f"mythic_{secrets.token_urlsafe(32)}"
    return f"{body}{binascii.crc32(body.encode()):08x}"


def digest(key: str) -> str:
    """Return `sha256:` and the hex digest: all that is kept of a key.

    A fast hash is right for 256 random bits; a slow one would let a flood of wrong keys stop the service.
    """
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


class AdminKeys:
    """Knows admin keys by their digests."""

    def __init__(self, keys: Mapping[str, WithRights]) -> None:
        self._owners: list[tuple[bytes, WithRights]] = [
            (kept.encode(), name) if isinstance(kept, str) else (kept[0].encode(), (name, kept[1]))
            for name, kept in keys.items()
        ]

    def __call__(self, key: str) -> WithRights | None:
        """Return the name of the key, or None; takes the same time wherever the key stands."""
        presented = digest(key).encode()
        found = None
        for known, owner in self._owners:
            if hmac.compare_digest(presented, known):
                found = owner  # no early exit
        return found


class _BearerAuth(HTTPTokenAuth):  # type: ignore[misc] # it has no types
    def __init__(self) -> None:
        super().__init__(scheme="Bearer")

    def get_auth(self) -> Authorization | None:
        try:
            auth: Authorization | None = super().get_auth()
        except ValueError:  # Werkzeug does not read non-ASCII after `Basic`
            return None
        return auth


def bearer_auth(verify_key: VerifyKey, refuse: Callable[[bool], Response]) -> HTTPTokenAuth:
    """Return the guard of a view: it lets a request pass whose bearer token `verify_key` knows.

    `current_user()` is then the Caller. All else gets `refuse(token_sent)`; so does an empty name.
    """

    def verify(token: str) -> Caller | None:
        return Caller.of(verify_key(token)) if token else None

    def unauthorized(_status: int) -> Response:
        sent = auth.get_auth()
        return refuse(sent is not None and bool(sent.token or sent.parameters))

    auth = _BearerAuth()
    auth.verify_token(verify)
    auth.error_handler(unauthorized)
    return auth
