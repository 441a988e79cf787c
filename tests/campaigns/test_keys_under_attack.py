"""Authentication under attack: keys that are nearly right."""

import base64
import binascii
import hmac
import io
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from werkzeug.test import create_environ

from flask_mythic_clients import MythicClients
from flask_mythic_clients.auth import create_key, digest
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository

from ..hosts import Host, KeyValue, contents

UNAUTHORIZED = (
    b'{"error": "Unauthorized", '
    b'"message": "Authentication required. Please provide a valid API token", "code": 401}'
)
CHALLENGES = {'Bearer realm="clients"', 'Bearer realm="clients", error="invalid_token"'}
KEYS = {"ops": create_key(), "night-job": create_key(), "ci": create_key()}
REMOVED = create_key()
LOOK_ALIKES = str.maketrans("aceimopxyABEHKMOPTX-_", "асеіморхуАВЕНКМОРТХ‐＿")
BLANKS = (" ", "\t", "\x0b", "\x0c", "\r\n", "\x85", "\xa0", "\x00", "\u200b", "\ufeff")


def wire(text: str) -> str:
    """Return the text as a WSGI server hands it on: each byte of its UTF-8 as one character."""
    return text.encode().decode("latin-1")


def checksum(body: str) -> str:
    return f"{binascii.crc32(body.encode()):08x}"


class Mutations:
    """Values of the header Authorization, each next to a right one; every method is a kind."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.kinds = [name for name in dir(self) if name.startswith(("key_", "header_"))]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Give kinds in turn, and values without end."""
        while True:
            for kind in self.kinds:
                key = self.random.choice(list(KEYS.values()))
                mutated = getattr(self, kind)(key)
                yield kind, f"Bearer {mutated}" if kind.startswith("key_") else mutated

    def noise(self, most: int = 12) -> str:
        return "".join(chr(self.random.randrange(1, 256)) for _ in range(self.random.randint(1, most)))

    def place(self, key: str) -> int:
        return self.random.randrange(len(key))

    def key_bits_flipped(self, key: str) -> str:
        flipped = bytearray(key.encode())
        for _ in range(self.random.randint(1, 3)):
            flipped[self.place(key)] ^= 1 << self.random.randrange(8)
        return flipped.decode("latin-1")

    def key_cut(self, key: str) -> str:
        at = self.place(key)
        return self.random.choice([key[:at], key[at + 1 :], key[:at] + key[at + 1 :]])

    def key_extended(self, key: str) -> str:
        noise = self.noise()
        return self.random.choice(
            [key + noise, noise + key, key + key, key + key[-1], key + "=" * len(noise)]
        )

    def key_in_another_case(self, key: str) -> str:
        at = self.place(key)
        return self.random.choice(
            [key.upper(), key.lower(), key.swapcase(), key[:at] + key[at:].swapcase(), key.title()]
        )

    def key_shuffled(self, key: str) -> str:
        a, b = sorted((self.place(key), self.place(key)))
        return self.random.choice(
            [key[:a] + key[b:] + key[a:b], key[::-1], key[:a] + key[a:b][::-1] + key[b:], key[b:] + key[:b]]
        )

    def key_with_another_end(self, key: str) -> str:
        other = self.random.choice([*KEYS.values(), create_key()])
        at = self.random.choice([7, len(key) - 8, self.place(key)])
        return key[:at] + other[at:]

    def key_with_a_right_checksum(self, key: str) -> str:
        body = list(key[:-8])
        body[self.random.randrange(7, len(body))] = self.random.choice("abcXYZ0189-_")
        return "".join(body) + checksum("".join(body))

    def key_that_looks_alike(self, key: str) -> str:
        at = self.place(key)
        wide = "".join(chr(ord(character) + 0xFEE0) for character in key)  # NFKC makes the key of it
        return wire(
            self.random.choice([key.translate(LOOK_ALIKES), wide, key[:at] + wide[at] + key[at + 1 :]])
        )

    def key_with_blanks(self, key: str) -> str:
        at, blank = self.place(key), wire(self.random.choice(BLANKS))
        return self.random.choice([key[:at] + blank + key[at:], key + blank, blank + key])

    def key_in_other_clothes(self, key: str) -> str:
        at = self.place(key)
        return self.random.choice(
            [
                *(f'"{key}"', f"'{key}'", f"<{key}>", f"{key},", f"{key};", f"token={key}", f'key="{key}"'),
                *(f"*=utf-8''{key}", f"a*=x'{key}", f"={key}", f"{key}={key}", f"{key[:at]}={key[at:]}"),
                *(f"{key[:at]}%{ord(key[at]):02x}{key[at + 1 :]}", key.encode().hex()),
                *(base64.b64encode(key.encode()).decode(), base64.b64encode(f":{key}".encode()).decode()),
            ]
        )

    def key_that_is_none(self, key: str) -> str:
        names = [*KEYS, "mythic_", "null", "true", "*", "%", "", " ", "=", "==", "' OR '1'='1"]
        digests = [
            digest(key),
            digest(key).removeprefix("sha256:"),
            f"ops={digest(key)}",
            digest(digest(key)),
        ]
        return self.random.choice([*names, *digests, REMOVED, create_key(), self.noise(80)])

    def key_that_is_long(self, key: str) -> str:
        return self.random.choice([key, "a", "=", "a=,", "\xff"]) * self.random.randint(2, 2000)

    def header_of_another_scheme(self, key: str) -> str:
        at = self.random.randrange(6)
        schemes = ["Basic", "Digest", "Token", "Bear", "Bearers", "Bearer:", "Bearer=", "", "Negotiate", "*"]
        spoiled = [wire("Bearer".translate(LOOK_ALIKES)), "Bearer"[:at] + self.noise(1) + "Bearer"[at + 1 :]]
        return f"{self.random.choice([*schemes, *spoiled])} {key}"

    def header_without_its_blank(self, key: str) -> str:
        between = self.random.choice(
            ["", ":", "=", ",", "\t", "\x0b", "\xa0", "\x00", "+", "%20", "_", "\r\n "]
        )
        return f"Bearer{between}{key}"

    def header_of_two(self, key: str) -> str:
        # What a server makes of two header lines, and what a proxy may.
        wrong, between = self.key_bits_flipped(key), self.random.choice([", ", ",", "; ", "\n", " ", "\x00"])
        first, second = self.random.choice([(key, wrong), (wrong, key), (key, key), (key, ""), ("", key)])
        return f"Bearer {first}{between}Bearer {second}"

    def header_of_noise(self, key: str) -> str:
        return self.random.choice(
            [self.noise(60), key, f"{key} Bearer", "Bearer", f"Basic {self.noise()}", ""]
        )


def carries_a_key(value: str) -> bool:
    """Whether the value is a right one, written in another of the ways RFC 9110 and Werkzeug allow.

    Any case of the scheme (11.1), blanks around the value (5.5), more than one before the key (11.4); for
    Werkzeug a tab is a blank there too.
    """
    found = re.fullmatch(r"[ \t]*bearer [ \t]*(\S+?)[ \t]*", value, re.IGNORECASE | re.ASCII)
    return found is not None and found[1] in KEYS.values()


def mount(url: str, kv: KeyValue, keys: dict[str, str]) -> Host:
    """Mount the package with these admin keys; `make_host` has one of its own."""
    db, app = SQLAlchemy(), Flask("host")
    repository = SQLAlchemyRepository(db)
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    app.config["MYTHIC_CLIENTS_ADMIN_KEYS"] = {name: digest(key) for name, key in keys.items()}
    db.init_app(app)
    clients = MythicClients(app, repository=repository, kv=kv.store)
    with app.app_context():
        db.create_all()
    return Host(app, db, repository.model, clients)


@pytest.fixture
def host(empty_database: Callable[[str], str], kv: KeyValue) -> Iterator[Host]:
    url = empty_database("sqlite")
    with closing(mount(url, kv, {**KEYS, "removed": REMOVED})) as before:
        before.add(id="acme", name="Acme")
        assert before.delete("acme", key=REMOVED).status_code == 200  # it was a key once
    with closing(mount(url, kv, KEYS)) as host:
        host.add(id="globex", name="Globex")
        for id in ("acme", "globex"):
            kv.raw.set(f"client:{id}", "cached")
        yield host


@pytest.fixture
def kv(empty_kv: Callable[[str], KeyValue]) -> KeyValue:
    return empty_kv("either")


Answer = tuple[str, list[tuple[str, str]], bytes]


def send(host: Host, authorization: str | None, path: str = "globex", query: str = "") -> Answer:
    """Call the app as a WSGI server does: no client library tidies the header up."""
    environ = create_environ(f"/api/v1/clients/{path}", method="DELETE", query_string=query)
    environ["wsgi.errors"] = io.StringIO()
    if authorization is not None:
        environ["HTTP_AUTHORIZATION"] = authorization
    started: list[Any] = []
    body = b"".join(host.flask.wsgi_app(environ, lambda *head: started.append(head)))  # type: ignore[arg-type]
    [(status, headers)] = started
    return status, headers, body


def test_no_mutated_key_is_let_in(
    host: Host, kv: KeyValue, size: Callable[[int], int], report: Callable[..., None]
) -> None:
    seed, wanted = random.randrange(10**6), size(3000)
    chance = random.Random(seed)
    before = contents(host, kv.raw, "client:acme", "client:globex")
    kinds: Counter[str] = Counter()
    accepted, unlike = [], []
    mutated = ((kind, value) for kind, value in Mutations(seed) if not carries_a_key(value))
    for kind, value in islice(mutated, wanted):
        kinds[kind] += 1
        path, query = (
            chance.choice(["acme", "globex", "absent", "a.b"]),
            chance.choice(["", "hard=true", "hard=1"]),
        )
        status, headers, body = send(host, value, path, query)
        if status.startswith("2"):
            accepted.append((kind, value))
        challenge = [text for name, text in headers if name == "WWW-Authenticate"]
        if (status, body) != ("401 UNAUTHORIZED", UNAUTHORIZED) or challenge[0] not in CHALLENGES:
            unlike.append((kind, value, status, body))
    assert (accepted, unlike) == ([], [])
    assert contents(host, kv.raw, "client:acme", "client:globex") == before
    assert set(kinds) == set(Mutations(seed).kinds)
    report(mutated=kinds.total(), accepted=len(accepted), other_than_401=len(unlike), kinds=len(kinds))
    # A right key, whatever its clothes, still is one: the loop above could have failed.
    for value in (f"{scheme} {key} " for scheme in ("Bearer", "bEARER", "Bearer  ") for key in KEYS.values()):
        assert carries_a_key(value)
        assert send(host, value)[0] == "200 OK", value


@pytest.mark.parametrize("count", [1, 2, 20])
def test_every_key_is_compared_wherever_the_right_one_stands(
    empty_database: Callable[[str], str], kv: KeyValue, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    keys = {f"key-{number}": create_key() for number in range(count)}
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def compare_digest(presented: bytes, known: bytes) -> bool:
        compared.append((presented, known))
        return compare(presented, known)

    monkeypatch.setattr(hmac, "compare_digest", compare_digest)
    with closing(mount(empty_database("sqlite"), kv, keys)) as host:
        host.add(id="globex", name="Globex")
        for key in (*keys.values(), create_key(), "x", "a" * 10_000):
            compared.clear()
            assert send(host, f"Bearer {key}")[0] == (
                "200 OK" if key in keys.values() else "401 UNAUTHORIZED"
            )
            # Digests, so that neither time nor length tells of the key; all of them, so that no place does.
            assert compared == [(digest(key).encode(), digest(known).encode()) for known in keys.values()]
