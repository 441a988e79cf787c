"""The units of systemd are what it takes, and what a service runs does its work."""

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from ..documents import SCHEDULERS, blocks
from ..example.conftest import ROOT
from .conftest import Deployed

UNITS = ROOT / "deploy" / "systemd"
SERVICES = sorted(UNITS.glob("*.service"))


def unit(path: Path) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]  # systemd minds capitals
    parsed.read_string(path.read_text())
    return parsed


def command(path: Path) -> str:
    """Return which of our commands the service is for."""
    return path.stem.removeprefix("mythic-clients-")


@pytest.mark.parametrize("path", SERVICES, ids=command)
def test_a_service_does_its_work(path: Path, deployed: Deployed) -> None:
    service = unit(path)["Service"]
    start = deployed.placed(service["ExecStart"])
    assert not re.search(r"[%$]", start), "systemd would replace it."
    environment = dict(
        line.split("=", 1)
        for line in Path(deployed.placed(service["EnvironmentFile"])).read_text().splitlines()
    )
    assert deployed.placed(service["WorkingDirectory"]) == f"{deployed.folder}"
    assert not deployed.did(command(path))
    ran = deployed.run(*shlex.split(start), **environment)
    assert (ran.returncode, ran.stderr) == (0, ""), ran
    assert deployed.did(command(path))


@pytest.mark.parametrize("path", SERVICES, ids=command)
def test_a_service_has_a_limit_and_a_timer(path: Path) -> None:
    service, timer = unit(path)["Service"], unit(path.with_suffix(".timer"))
    # A service of this type has no limit of its own, and while it runs its timer starts no other.
    assert service["Type"] == "oneshot"
    assert service["TimeoutStartSec"] != "infinity"
    assert timer["Timer"]["OnCalendar"]
    assert timer["Install"]["WantedBy"] == "timers.target"


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed, so systemd is not asked whether it takes the units.")
    units = [tmp_path / path.name for path in UNITS.iterdir()]
    for path in units:
        # It looks whether the programs are there.
        path.write_text((UNITS / path.name).read_text().replace("/srv/app/.venv/bin/flask", "/bin/true"))

    def said() -> str:
        verify = [analyze, "verify", "--man=no", *map(str, units)]
        ran = subprocess.run(verify, capture_output=True, text=True, timeout=60, check=False)
        return ran.stdout + ran.stderr

    assert said() == ""
    for path in units:
        path.write_text(path.read_text().replace("OnCalendar", "OnCalender"))
    assert "OnCalender" in said()


def test_the_documented_units_are_there() -> None:
    [text] = [text for text in blocks(SCHEDULERS, "sh") if "systemctl" in text]
    named = re.findall(r"mythic-clients-\w+\.timer", text)
    assert named
    assert set(named) <= {path.name for path in UNITS.iterdir()}
    copied = re.search(r"cp (\S+)", text)
    assert copied is not None
    assert sorted(ROOT.glob(copied[1])) == sorted(UNITS.iterdir())
