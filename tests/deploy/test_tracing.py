"""A deletion is one trace, in the documented order, and tells nothing of a client but its id."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from ..documents import TRACING
from ..example.conftest import ROOT
from ..hosts import KeyValue

REQUEST = "DELETE /api/v1/clients/<client_id>"
ORDER = {
    # database → the spans of step 1, step 2 and the stamp
    name.lower(): [re.findall(r"`(.*?)`", cell) for cell in cells.split("|")]
    for name, cells in re.findall(r"^\| (SQLite|PostgreSQL|MariaDB) \| (.*) \|$", TRACING, re.MULTILINE)
}


@pytest.fixture
def traced(database_url: str, empty_kv: Callable[[str], KeyValue]) -> Any:
    """What the page's recipe exports of an app on a real Redis, also with all headers."""
    kv = empty_kv("either")
    if kv.url is None:
        pytest.skip("A quick run starts no server.")
    [setting] = re.findall(r"export (OTEL_\w+=\w+)", TRACING)
    headers = {"OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST": ".*"}
    ran = subprocess.run(
        [sys.executable, "-m", "tests.deploy.traced", database_url, kv.url],
        cwd=ROOT,
        env=os.environ | headers | dict([setting.split("=")]),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_a_deletion_is_a_trace_that_tells_no_secret(traced: Any, database_url: str) -> None:
    """One run, for each takes seconds."""
    told = traced["told"]
    kind = sa.make_url(database_url).get_backend_name()
    statuses = {"hard": 200, "soft": 200, "refused": 409, "away": 503, "reconcile": None}
    assert {name: each["status"] for name, each in told.items()} == statuses
    _is_in_the_documented_order(told["hard"]["spans"], kind)
    for name, each in told.items():
        root = _is_one_trace(each["spans"])
        assert root["name"] == ("reconcile" if name == "reconcile" else REQUEST)
        _tells_no_secret(each["spans"], traced)
    _is_silenced(told, kind)


def _is_in_the_documented_order(spans: Any, kind: str) -> None:
    below = [span for span in sorted(spans, key=lambda span: span["start"]) if span["parent_id"]]
    names = [span["name"].split()[0] for span in below]
    step_1, step_2, stamp = ORDER[kind]
    assert names == [*step_1, *step_2, *stamp]
    sent = [span["attributes"].get("db.statement", "") for span in below]
    first = " ".join(sent[: len(step_1)])
    assert "INSERT INTO client_deletions" in first
    assert "DELETE FROM accounts" in first
    assert sent[len(step_1)] == "EVAL ? ? ? ? ? ?"  # the script, how many keys, the leases, the entries
    assert "UPDATE client_deletions SET settled_at" in sent[-1]


def _is_one_trace(spans: Any) -> Any:
    """Return its root, below which all others stand."""
    [root] = [span for span in spans if span["parent_id"] is None]
    assert {span["context"]["trace_id"] for span in spans} == {root["context"]["trace_id"]}
    assert {span["parent_id"] for span in spans} == {None, root["context"]["span_id"]}
    return root


def _tells_no_secret(spans: Any, traced: Any) -> None:
    text = json.dumps(spans)
    told_nowhere = (traced["key"], traced["digest"], "secret-of-", "Name-of-", "account:", "token:")
    assert [secret for secret in told_nowhere if secret in text] == []
    requests = [span["attributes"] for span in spans if span["name"] == REQUEST]
    assert all("[REDACTED]" in attributes["http.request.header.authorization"] for attributes in requests)
    for span in spans:
        attributes = {name: value for name, value in span["attributes"].items() if name != "http.target"}
        assert not any(id in json.dumps({**span, "attributes": attributes}) for id in ("acme", "globex"))


def _is_silenced(told: Any, kind: str) -> None:
    """The page's exporter takes out what a store says; and there is something to be taken out."""
    for each in told.values():
        stores = [span for span in each["spans"] if span["kind"] == "SpanKind.CLIENT"]
        assert all(set(span["status"]) == {"status_code"} and span["events"] == [] for span in stores)
    said = json.dumps(told["refused"]["raw"])
    assert ("secret-of-globex" in said) is (kind == "postgresql")
    failed = [span for span in told["refused"]["spans"] if span["status"]["status_code"] == "ERROR"]
    assert len(failed) == (0 if kind == "mariadb" else 1)
    assert "Connection refused" in json.dumps(told["away"]["raw"])
