"""Admin keys. The only importer of flask_httpauth."""

import binascii
import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping
from typing import TypeAlias

from flask import Response
from flask_httpauth import HTTPTokenAuth
from werkzeug.datastructures import Authorization

VerifyKey: TypeAlias = Callable[[str], str | None]


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

    def __init__(self, digests: Mapping[str, str]) -> None:
        self._digests = {name: digest.encode() for name, digest in digests.items()}

    def __call__(self, key: str) -> str | None:
        """Return the name of the key, or None; takes the same time wherever the key stands."""
        presented = digest(key).encode()
        actor = None
        for name, known in self._digests.items():
            if hmac.compare_digest(presented, known):
                actor = name  # no early exit
        return actor


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

    `current_user()` is then the name. All else gets `refuse(token_sent)`; so does an empty name.
    """

    def verify(token: str) -> str | None:
        actor = verify_key(token) if token else None
        return actor if isinstance(actor, str) and actor else None

    def unauthorized(_status: int) -> Response:
        sent = auth.get_auth()
        return refuse(sent is not None and bool(sent.token or sent.parameters))

    auth = _BearerAuth()
    auth.verify_token(verify)
    auth.error_handler(unauthorized)
    return auth
