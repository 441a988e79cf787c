"""The manifests are what Kubernetes takes, their commands do their work, and their probes ask no store."""

import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import kubernetes_validate
import pytest
import requests
import yaml

from ..documents import SCHEDULERS, blocks
from ..example.conftest import ROOT
from .conftest import Deployed
from .test_cron import parsed

MANIFESTS = {
    manifest["metadata"]["name"]: manifest
    for path in (ROOT / "deploy" / "kubernetes").iterdir()
    for manifest in yaml.safe_load_all(path.read_text())
}
JOBS = {
    name.removeprefix("mythic-clients-"): manifest["spec"]
    for name, manifest in MANIFESTS.items()
    if manifest["kind"] == "CronJob"
}
VERSION = "1.29"  # old enough for every cluster that is looked after


def container(job: str) -> Any:
    [only] = JOBS[job]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    return only


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_of_the_schema(name: str) -> None:
    """The schema knows the names and types of all fields, not what a cluster makes of them."""
    kubernetes_validate.validate(MANIFESTS[name], VERSION, strict=True)
    broken = {**MANIFESTS[name], "sepc": {}}
    with pytest.raises(kubernetes_validate.ValidationError, match="sepc"):
        kubernetes_validate.validate(broken, VERSION, strict=True)


@pytest.mark.parametrize("job", JOBS)
def test_a_job_cannot_pile_up(job: str) -> None:
    spec = JOBS[job]
    parsed(f"{spec['schedule']} {job}")
    assert spec["concurrencyPolicy"] == "Forbid"
    # Without it, a CronJob that has missed a hundred starts is never started again.
    assert spec["startingDeadlineSeconds"] >= 10
    template = spec["jobTemplate"]["spec"]
    # Without it, one that hangs forbids all later ones.
    assert template["activeDeadlineSeconds"] > 0
    assert template["backoffLimit"] == (1 if job == "status" else 0)
    assert template["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize("job", [job for job in JOBS if job != "status"])
def test_a_job_does_its_work(job: str, deployed: Deployed) -> None:
    assert not deployed.did(job)
    ran = run(deployed, job)
    assert (ran.returncode, ran.stderr) == (0, ""), ran
    assert deployed.did(job)


def test_the_status_job_fails_until_a_reconcile(deployed: Deployed) -> None:
    failed = run(deployed, "status")
    assert failed.returncode == 1, failed
    assert run(deployed, "reconcile").returncode == 0
    assert run(deployed, "status").returncode == 0


def test_no_manifest_holds_a_key() -> None:
    for path in (ROOT / "deploy" / "kubernetes").iterdir():
        text = path.read_text().lower()
        assert not any(word in text for word in ("httpheaders", "authorization", "bearer", "sha256:"))


def test_the_probes_are_answered_while_both_stores_are_away(deployed: Deployed) -> None:
    """So no pod is restarted, or taken out, for what a restart would not mend."""
    [web] = MANIFESTS["app"]["spec"]["template"]["spec"]["containers"]
    probes = [web[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    with served(deployed, web["command"]) as url:
        for probe in probes:
            assert probe["port"] in [port["name"] for port in web["ports"]]
            answer = requests.get(f"{url}{probe['path']}", timeout=20)
            assert (answer.status_code, answer.json()) == (200, {"ok": True})
        headers = {"Authorization": f"Bearer {deployed.key}"}
        deletion = requests.delete(f"{url}/api/v1/clients/acme", headers=headers, timeout=10)
        assert deletion.status_code == 503


@contextmanager
def served(deployed: Deployed, command: list[str]) -> Iterator[str]:
    """Serve the app with the documented route, on stores that are away."""
    [health] = [text for text in blocks(SCHEDULERS, "python") if "healthz" in text]
    app = deployed.folder / "app.py"
    source = app.read_text().replace("    return app\n", "    add_health(app)\n    return app\n")
    source = re.sub(r"sqlite:///[^\"]+", "sqlite:////nowhere/accounts.db", source)
    source = re.sub(r"redis://[^\"]+", "redis://127.0.0.1:1/0", source)  # nobody listens on port 1
    app.write_text(f"{source}\n\n{health}")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    assert "0.0.0.0:8000" in command
    command = [address if word == "0.0.0.0:8000" else word for word in command]
    keys = (deployed.folder / "mythic-clients.env").read_text().strip().partition("=")[2]
    program = shutil.which(command[0], path=f"{deployed.folder / '.venv' / 'bin'}")
    assert program is not None
    with (deployed.folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [program, *command[1:]],
            cwd=deployed.folder,
            env={"MYTHIC_CLIENTS_ADMIN_KEYS": keys},
            stdout=log,
            stderr=log,
        )
    try:
        for _ in range(600):
            try:
                requests.get(f"http://{address}/", timeout=20)
                break
            except requests.ConnectionError:
                assert server.poll() is None, (deployed.folder / "log").read_text()
                time.sleep(0.05)
        yield f"http://{address}"
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(timeout=15)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def run(deployed: Deployed, job: str) -> "subprocess.CompletedProcess[str]":
    """Run what the container runs, with the image's programs on PATH."""
    path = f"{deployed.folder / '.venv' / 'bin'}:/usr/bin:/bin"
    command = [deployed.placed(word) for word in container(job)["command"]]
    # Python looks for the program on our PATH, not on that of the environment it is given.
    return deployed.run("/usr/bin/env", *command, PATH=path)
