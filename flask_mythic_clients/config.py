"""The settings: read once, whole, and frozen. The only reader of `MYTHIC_CLIENTS_*`, or of another kind's."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from .entries import KeyTemplates
from .errors import ConfigurationError
from .model import HardDelete, SoftDeleteEntries
from .rights import Right, Route, WithRights

CLIENTS = "clients"
"""The kind of client of a host that names none."""
_KIND = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Settings:
    """One app's settings for a kind of client; each field is `MYTHIC_CLIENTS_` and its name in capitals."""

    admin_keys: Mapping[str, WithRights] = field(default_factory=dict, repr=False)
    url_prefix: str = "/api/v1"
    routes: Sequence[Route] = (Route.DELETE,)
    kv_keys: Sequence[str] = ("client:{id}",)
    hard_delete: HardDelete = HardDelete.ALLOW
    verify_after: timedelta = timedelta(seconds=60)
    keys_kept: timedelta = timedelta(days=7)
    retry_after: int = 5
    soft_delete_entries: SoftDeleteEntries = SoftDeleteEntries.REWRITE

    @classmethod
    def from_config(cls, config: Mapping[str, Any], kind: str = CLIENTS) -> "Settings":
        """Read an app's config; no I/O. What comes from an environment, as text, is read too.

        Raises ConfigurationError for a wrong value and for an unknown key of ours, naming the key.
        """
        known = {setting(kind, name): name for name in _READERS}
        fields = {}
        for key, value in config.items():
            if not key.startswith(setting(kind, "")):
                continue
            if key not in known:
                told = f"{key} is no setting. The settings are {', '.join(known)}."
                if key.endswith(tuple(f"_{name}".upper() for name in _READERS)):
                    told += f" The name of another kind must not begin with '{kind}_'."
                raise ConfigurationError(told)
            fields[known[key]] = _READERS[known[key]](key, value)
        return cls(**fields)


def setting(kind: str, name: str) -> str:
    """Return the key of a setting, `MYTHIC_CLIENTS_ADMIN_KEYS` for the `admin_keys` of `clients`."""
    return f"MYTHIC_{kind}_{name}".upper()


def commands(kind: str) -> str:
    """Return the name of the group of commands, `mythic-clients` for `clients`."""
    return f"mythic-{kind}".replace("_", "-")


def check_kind(kind: object) -> str:
    """Return the name of a kind of client; raises ConfigurationError where it can be no route's."""
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise ConfigurationError(
            f"name= takes a plural such as 'organizations', of small letters, digits and '_', not {kind!r}."
        )
    return kind


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Put the setting's name before what is wrong with its value."""
    try:
        yield
    except ConfigurationError as error:
        raise ConfigurationError(f"{key}: {error}") from error


def check_name(name: str) -> str:
    """Return the name of an admin key; raises ConfigurationError where it is not fit for the ledger."""
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} does not name an admin key: use 1 to 64 letters, digits, '_', '.' or '-'."
        )
    return name


def _commands(key: str) -> str:
    return commands(key.removeprefix("MYTHIC_").removesuffix("_ADMIN_KEYS").lower())


def check_rights(names: object) -> frozenset[Right]:
    """Return what a key may; raises ConfigurationError where it is no list of rights, or an empty one."""
    # What is wrong is not shown: it may be a plain key.
    if not isinstance(names, (list, tuple)) or not names or not all(name in list(Right) for name in names):
        raise ConfigurationError(
            f"'may' takes some of {', '.join(Right)}; a key without it may do everything."
        )
    return frozenset(map(Right, names))


def check_routes(key: str, value: object) -> Sequence[Route]:
    """Return the routes to be mounted; raises ConfigurationError, which names those that there are."""
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if (
        not isinstance(names, (list, tuple))
        or not names
        or not all(name in list(Route) for name in names)
        or len(set(names)) < len(names)
    ):
        wanted = f"a list of some of {', '.join(Route)}, each once at the most, or one text, 'delete,restore'"
        raise _wrong(key, wanted, value)
    return tuple(map(Route, names))


def _admin_keys(key: str, value: object) -> Mapping[str, WithRights]:
    pairs: list[tuple[Any, Any]]
    if isinstance(value, str):
        # A shell needs quotes around the `;`; what reads an env file may hand them on.
        entries = [entry.strip("'\" \t\r\n") for entry in value.split(",")]
        pairs = [_entry(entry) for entry in entries if entry]
    elif isinstance(value, Mapping):
        pairs = list(value.items())
    else:
        raise _wrong(key, "a dict name -> 'sha256:…', or one string 'name=sha256:…,name2=sha256:…'", value)
    keys: dict[str, WithRights] = {}
    digests: list[str] = []
    for number, (name, kept) in enumerate(pairs, 1):
        # Neither name nor value is shown: what stands there may be a plain key.
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"{key}: entry {number} has no valid name: 1 to 64 letters, digits, '_', '.' or '-'."
            )
        limited = isinstance(kept, Mapping)
        if limited and set(kept) not in ({"digest"}, {"digest", "may"}):
            raise ConfigurationError(f"{key}: entry {number} takes 'digest' and 'may', and nothing else.")
        digest = kept["digest"] if limited else kept
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise ConfigurationError(
                f"{key}: entry {number} is not 'sha256:' and 64 lower-case hex digits. Plain keys are "
                f"refused: empty this setting, and make a key with `flask {_commands(key)} create-key NAME`."
            )
        if name in keys:
            raise ConfigurationError(f"{key}: the name {name!r} stands there twice; rename one.")
        if digest in digests:
            # Of two entries with one key, which may do what is anybody's guess.
            raise ConfigurationError(
                f"{key}: entry {number} is the key of entry {digests.index(digest) + 1}."
            )
        digests.append(digest)
        keys[name] = digest
        if limited and "may" in kept:
            with naming(f"{key}: entry {number}"):
                keys[name] = (digest, check_rights(kept["may"]))
    return keys


def _entry(text: str) -> tuple[str, object]:
    """Split `name=sha256:…` or `name=sha256:…;may=soft+restore`, into what a dict would have."""
    name, _, kept = text.partition("=")
    digest, limited, limit = kept.partition(";")
    if not limited:
        return name.strip(), digest.strip()
    field, _, rights = limit.partition("=")
    names = [right.strip() for right in rights.split("+")]
    return name.strip(), {"digest": digest.strip(), field.strip(): names}


def _url_prefix(key: str, value: object) -> str:
    if not isinstance(value, str) or (value and not re.fullmatch(r"(/[^/<>\s]+)+", value)):
        raise _wrong(key, "a path such as '/api/v1', without a slash at its end, or ''", value)
    return value


def _kv_keys(key: str, value: object) -> Sequence[str]:
    if isinstance(value, str):
        value = [template.strip() for template in value.split(",") if template.strip()]
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(v, str) for v in value):
        wanted = "a list of templates such as ['client:{id}'], or one text, 'client:{id},token:{api_token}'"
        raise _wrong(key, wanted, value)
    with naming(key):
        KeyTemplates(value)
    return tuple(value)


def _hard_delete(key: str, value: object) -> HardDelete:
    if value not in list(HardDelete):
        raise _wrong(key, f"one of {', '.join(HardDelete)}", value)
    return HardDelete(str(value))


def _soft_delete_entries(key: str, value: object) -> SoftDeleteEntries:
    if value not in list(SoftDeleteEntries):
        raise _wrong(key, f"one of {', '.join(SoftDeleteEntries)}", value)
    return SoftDeleteEntries(str(value))


def _seconds(key: str, value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value.strip()):
        value = int(value)
    # bool is an int in Python, but no number of seconds.
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 86400 * 365:
        raise _wrong(key, "a whole number of seconds, 0 or more", value)
    return value


def _duration(key: str, value: object) -> timedelta:
    return timedelta(seconds=_seconds(key, value))


def _wrong(key: str, wanted: str, value: object) -> ConfigurationError:
    shown = type(value).__name__ if key.endswith("ADMIN_KEYS") else repr(value)
    return ConfigurationError(f"{key} must be {wanted}, not {shown}.")


_READERS: Mapping[str, Callable[[str, object], Any]] = {
    "admin_keys": _admin_keys,
    "url_prefix": _url_prefix,
    "routes": check_routes,
    "kv_keys": _kv_keys,
    "hard_delete": _hard_delete,
    "verify_after": _duration,
    "keys_kept": _duration,
    "retry_after": _seconds,
    "soft_delete_entries": _soft_delete_entries,
}
