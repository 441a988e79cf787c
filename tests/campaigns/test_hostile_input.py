"""Hostile input: schemathesis on the package's own OpenAPI document, with every check it has.

`--size` is the number of cases of a route on a database: half of them with the right key, a sixth with one
that may only look, a sixth with credentials that schemathesis makes up, a sixth with none.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import sqlalchemy as sa
from hypothesis.configuration import set_hypothesis_home_dir
from schemathesis.engine import events, from_schema
from werkzeug.test import Client, TestResponse

from flask_mythic_clients.auth import digest
from flask_mythic_clients.openapi import openapi_document
from flask_mythic_clients.rights import Route

from ..hosts import ADMIN_KEY, Host, KeyValue, make_host

METHODS = ("DELETE", "GET", "POST")
SHARES = {"right": 2, "looking": 6, "wrong": 6, "none": 6}  # one of so many cases
CREDENTIALS: dict[str, dict[str, Any]] = {
    "right": {"headers": {"Authorization": f"Bearer {ADMIN_KEY}"}},
    "looking": {"headers": {"Authorization": "Bearer looking"}},
    "wrong": {},  # schemathesis makes up tokens, and leaves some out
    "none": {"generation": {"with-security-parameters": False}},
}
CONFIG: dict[str, Any] = {
    "seed": 1,  # a larger size finds more, the same size the same
    "continue-on-failure": True,
    "cache": {"enabled": False},  # it would lie in the checkout
    "checks": {
        # Narrower than their defaults. A valid request may be about a client that is not there, or one that
        # must be soft-deleted first; an invalid one is never let through. Either may be too much for the key.
        "positive_data_acceptance": {"expected-statuses": ["200", "401", "403", "404", "409"]},
        "negative_data_rejection": {"expected-statuses": ["400", "401", "403", "405"]},
    },
}
# A time proves nothing on a busy machine, so there is no `max_response_time`.
MADE = {
    "allow_header_conformance",
    "content_type_conformance",
    "ensure_resource_availability",
    "ignored_auth",
    "missing_required_header",
    "negative_data_rejection",
    "not_a_server_error",
    "object_level_authorization",
    "positive_data_acceptance",
    "response_headers_conformance",
    "response_schema_conformance",
    "status_code_conformance",
    "unsupported_method",
    "use_after_free",
}


class Tenants:
    """Makes a client, with its entry, for every second request that names one."""

    def __init__(self, host: Host, raw: Any) -> None:
        self.made: set[str] = set()
        self.host, self._raw = host, raw
        self._app = host.flask.wsgi_app
        self._every_second = cycle((True, False))

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        found = re.fullmatch(r"/api/v1/clients/([a-zA-Z0-9_-]{1,255})(/restore|/deletion-preview)?", path)
        if found and next(self._every_second):
            self._make(found[1])
        return self._app(environ, start_response)

    def _make(self, id: str) -> None:
        try:
            self.host.add(id=id, name="")
        except sa.exc.IntegrityError:
            return  # it is there already, or on MariaDB its twin in another case
        self._raw.set(f"client:{id}", json.dumps({"id": id, "name": "", "status": True}))
        self.made.add(id)

    def found(self) -> Counter[str]:
        """Count the clients by what became of them; the two stores must agree on each."""
        rows = {row.id: row.status for row in self.host.rows()}
        fates: Counter[str] = Counter()
        for id in self.made:
            entry = self._raw.get(f"client:{id}")
            assert (None if entry is None else json.loads(entry)["status"]) == rows.get(id), id
            fates[{True: "active", False: "soft", None: "hard"}[rows.get(id)]] += 1
        return fates


class InProcess(Client):
    """Without the socket's settings, which schemathesis also gives to the probes of `ignored_auth`."""

    def open(
        self, *, max_redirects: Any = None, verify: Any = None, cert: Any = None, **request: Any
    ) -> TestResponse:
        return super().open(**request)


@pytest.fixture(autouse=True)
def _schemathesis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("schemathesis.python.wsgi.get_client", InProcess)
    set_hypothesis_home_dir(tmp_path / "hypothesis")  # not in the checkout
    yield
    set_hypothesis_home_dir(None)


@pytest.fixture
def tenants(database_url: str, empty_kv: Callable[[str], KeyValue]) -> Iterator[Tenants]:
    kv = empty_kv("either")
    # With this guard a hard delete has two answers, 200 and 409.
    config = {
        "MYTHIC_CLIENTS_HARD_DELETE": "after-soft-delete",
        "MYTHIC_CLIENTS_ROUTES": list(Route),
        "MYTHIC_CLIENTS_ADMIN_KEYS": {
            "tests": digest(ADMIN_KEY),
            "looking": {"digest": digest("looking"), "may": ["history", "preview", "status"]},
        },
    }
    with closing(make_host(database_url, kv.store, config=config)) as host:
        document = partial(openapi_document, routes=list(Route))
        host.flask.add_url_rule("/openapi.json", "openapi", document)
        tenants = Tenants(host, kv.raw)
        host.flask.wsgi_app = tenants  # type: ignore[method-assign]
        yield tenants


@pytest.mark.parametrize("key", SHARES)
def test_no_request_gets_an_answer_that_the_document_does_not_promise(
    tenants: Tenants, key: str, size: Callable[[int], int], report: Callable[..., None]
) -> None:
    host = tenants.host
    wanted = -(-size(100) // SHARES[key])
    answers, failures, checks = attack(host, key, wanted)
    assert failures == []
    assert sum(answers.values()) >= wanted
    assert checks >= MADE
    fates = tenants.found()
    with host.flask.app_context():
        records = host.db.session.scalar(sa.text("SELECT count(*) FROM client_deletions"))
    if key == "right":
        expected = {f"{method} {status}" for method in METHODS for status in (200, 400, 404)}
        assert expected <= set(answers)
        assert records >= fates["soft"] + 2 * fates["hard"] > 0
        assert not [answer for answer in answers if answer.endswith("403")]
    else:
        # A method that a path has not is the host's to refuse.
        sent = {answer for answer in answers if answer.partition(" ")[0] in METHODS}
        sent -= {f"{method} 405" for method in METHODS}
        if key == "looking":
            assert {answer for answer in sent if answer.endswith("403")} == {"DELETE 403", "POST 403"}
            assert "GET 200" in sent
        else:
            assert sent == {f"{method} 401" for method in METHODS}
        assert (records, fates) == (0, {"active": len(tenants.made)})
    report(cases=sum(answers.values()), failures=len(failures), answers=dict(answers), clients=dict(fates))


def attack(host: Host, key: str, cases: int) -> tuple[Counter[str], list[str], set[str]]:
    """Run schemathesis; return the answers counted, what failed, and the names of the checks made."""
    config = {"generation": {}, **CONFIG, **CREDENTIALS[key]}
    config["generation"] = {**config["generation"], "max-examples": cases, "database": "none"}
    schema = schemathesis.openapi.from_wsgi(
        "/openapi.json", host.flask, config=schemathesis.Config.from_dict(config)
    )
    answers: Counter[str] = Counter()
    failures: list[str] = []
    checks: set[str] = set()
    for event in from_schema(schema).execute():
        if isinstance(event, events.NonFatalError | events.FatalError):
            failures.append(repr(getattr(event, "value", None) or event.exception))
        if not isinstance(event, events.ScenarioFinished):
            continue
        for id, interaction in event.recorder.interactions.items():
            request, answer = interaction.request, interaction.response
            answers[f"{request.method} {answer and answer.status_code}"] += 1
            for check in event.recorder.checks.get(id, []):
                checks.add(check.name)
                if check.failure_info:
                    failure = check.failure_info.failure
                    failures.append(f"{check.name}: {request.method} {request.uri}: {failure.message}")
    return answers, failures, checks
