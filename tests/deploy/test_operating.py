"""The operator's page: its commands print what it says, and its names are those that there are."""

import logging
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from flask_mythic_clients.errors import ConfigurationError
from flask_mythic_clients.exposition import exposition
from flask_mythic_clients.extension import MythicClients
from flask_mythic_clients.logs import FIELDS
from flask_mythic_clients.metrics import Metrics
from flask_mythic_clients.model import Health

from ..documents import OPERATING, blocks
from ..example.conftest import ROOT
from ..hosts import Host, KeyValue, mounting
from .conftest import Deployed
from .test_cron import parsed

RULES = ROOT / "deploy" / "prometheus" / "mythic-clients.rules.yaml"
TIME = re.compile(r"20[0-9]{2}-[0-9-]+ [0-9:.]+\+00:00")
AGE = re.compile(r"(oldest|last reconcile) [0-9]+")


def steps() -> Iterator[tuple[str, list[str]]]:
    """Yield each command of the page, and what it says that is printed."""
    for text in blocks(OPERATING, ""):
        command, *lines = text.splitlines()
        if command.startswith("$ "):
            yield command[2:], lines


def plain(text: str) -> str:
    return AGE.sub(r"\1 N", TIME.sub("TIME", text))


def test_the_commands_print_what_the_page_says(deployed: Deployed) -> None:
    commands = list(steps())
    assert len(commands) >= 9
    for command, lines in commands:
        first, *arguments = shlex.split(command)
        keys = deployed.placed("/srv/app/env")
        shell = f". {keys} && {shlex.join([f'.venv/bin/{first}', *arguments])}"
        ran = deployed.run("/bin/sh", "-c", shell)
        assert ran.returncode == (1 if arguments[3] == "status" else 0), ran
        # Without a row to print there is no line of names either.
        assert plain(ran.stdout + ran.stderr).splitlines() == [plain(line) for line in lines], command
    assert deployed.did("reconcile")


def test_there_are_ten_questions() -> None:
    questions = re.findall(r"^## ([0-9]+)\. .*[?]$", OPERATING, re.MULTILINE)
    assert questions == [f"{number}" for number in range(1, 11)]


def test_the_fields_of_a_line_are_all_documented() -> None:
    table = OPERATING.partition("| attribute |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(FIELDS)


def test_the_lines_of_the_log_look_so(deployed: Deployed, caplog: pytest.LogCaptureFixture) -> None:
    [shown] = [text for text in blocks(OPERATING, "") if text.startswith("INFO ")]
    for line in shown.splitlines():
        level, _, text = line.partition(" ")
        assert logging.getLevelName(level)
        assert set(re.findall(r" (\w+)=", text)) <= set(FIELDS)
    with caplog.at_level(logging.INFO, "flask_mythic_clients"), deployed.host.flask.app_context():
        deployed.host.clients.service.reconcile()
    [done] = [record.getMessage() for record in caplog.records if record.name == "flask_mythic_clients"]
    assert shown.startswith(f"INFO {done.partition(' client_id=')[0]} client_id=")


def test_the_line_of_the_crontab_writes_the_metrics(deployed: Deployed) -> None:
    (deployed.folder / "metrics").mkdir()
    [line] = blocks(OPERATING, "text", "--prometheus")
    _, command = parsed(line.strip())
    ran = deployed.run(
        "/bin/sh", "-c", deployed.placed(command).replace("/metrics/", f"{deployed.folder}/metrics/")
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran
    read = samples((deployed.folder / "metrics" / "mythic_clients.prom").read_text())
    assert read["mythic_deletions_pending"] == 1
    assert read["mythic_deletions_ok"] == 0
    assert read["mythic_deletions_kv_up"] == read["mythic_deletions_database_up"] == 1
    table = OPERATING.partition("| name, each")[2].partition("\n\n")[0]
    documented = re.findall(r"`(mythic_\w+|_\w+)`", table)
    names = {name if name.startswith("mythic") else f"mythic_deletions{name}" for name in documented}
    assert names == set(read)


def samples(text: str) -> dict[str, float]:
    """Read what Prometheus would."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        assert family.type == "gauge"
        for sample in family.samples:
            assert sample.labels == {"kind": "clients"}
            found[sample.name] = sample.value
    return found


def test_what_is_not_known_is_left_out() -> None:
    away = Health(None, None, "away", "away")
    assert samples(exposition("clients", away)) == {
        **{"mythic_deletions_ok": 0, "mythic_deletions_database_up": 0, "mythic_deletions_kv_up": 0}
    }


def test_the_alerts_are_on_metrics_that_there_are(deployed: Deployed) -> None:
    with deployed.host.flask.app_context():
        there = samples(exposition("clients", deployed.host.clients.service.health()))
    text = RULES.read_text()
    used = set(re.findall(r"mythic_\w+", text)) - {"mythic_clients"}
    assert used
    assert used <= set(there)


def test_the_alerts_come_when_they_should() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's prometheus has it), so the alerts are not tried.")
    tests = ROOT / "tests" / "deploy" / "rules_test.yaml"
    ran = subprocess.run(
        [promtool, "test", "rules", tests], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


class TestMetricsOfRequests:
    @pytest.fixture
    def registry(self) -> CollectorRegistry:
        return CollectorRegistry()

    @pytest.fixture
    def host(
        self, registry: CollectorRegistry, tmp_path: Any, empty_kv: Callable[[str], KeyValue]
    ) -> Iterator[Host]:
        store = empty_kv("memory").store
        with mounting(f"sqlite:///{tmp_path}/test.db", store) as mount:
            host = mount(metrics=Metrics(registry), config={"MYTHIC_CLIENTS_ROUTES": "delete,restore,status"})
            host.add(id="acme", name="acme")
            yield host

    def test_each_request_is_counted_and_measured(self, host: Host, registry: CollectorRegistry) -> None:
        asked = [
            *(("DELETE", "acme", "soft", 200), ("DELETE", "acme?hard=true", "hard", 200)),
            *(("DELETE", "acme?hard=true", "hard", 404), ("DELETE", "acme?hard=x", "delete", 400)),
            *(("POST", "nobody/restore", "restore", 404), ("GET", "deletions/status", "status", 503)),
        ]
        host.let_time_pass(0)
        for method, path, action, status in asked:
            if status == 503:
                with host.flask.app_context():
                    host.db.metadata.tables["client_deletions"].drop(host.db.engine)
            labels = {"kind": "clients", "action": action}
            counted = {**labels, "status": f"{status}"}
            before = registry.get_sample_value("mythic_requests_total", counted) or 0
            assert host.send(method, path).status_code == status
            assert registry.get_sample_value("mythic_requests_total", counted) == before + 1
            assert registry.get_sample_value("mythic_request_duration_seconds_count", labels)
            assert registry.get_sample_value("mythic_request_duration_seconds_sum", labels)
        labels = {"kind": "clients", "action": "soft", "status": "401"}
        assert host.delete("acme", key="wrong").status_code == 401
        assert registry.get_sample_value("mythic_requests_total", labels) == 1

    def test_what_the_host_itself_answers_is_not_counted(
        self, host: Host, registry: CollectorRegistry
    ) -> None:
        assert host.send("PUT", "acme").status_code == 405
        assert host.flask.test_client().get("/elsewhere").status_code == 404
        assert [family.samples for family in registry.collect() if family.samples] == []

    def test_what_is_no_metrics_is_refused(self, host: Host) -> None:
        with pytest.raises(ConfigurationError, match="metrics="):
            MythicClients(
                Flask("other"), repository=host.clients._repository, kv=host.clients._kv, metrics=object()
            )  # type: ignore[arg-type]


def test_the_block_that_mounts_it_runs() -> None:
    [block] = blocks(OPERATING, "python")
    given: dict[str, Any] = {}
    names: dict[str, Any] = {
        "MythicClients": lambda **options: given.update(options),
        "repository": 1,
        "kv": 2,
    }
    exec(compile(block, "docs/operating.md", "exec"), names)
    assert isinstance(given["metrics"], Metrics)
