"""`make` on a machine that lacks something says what, in one line and at once."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def make(tmp_path: Path) -> Run:
    """Run make with its virtual environment in a temporary folder."""
    # Of the make that runs these tests nothing is handed on, nor of its command line.
    inherited = {name: value for name, value in os.environ.items() if not re.match(r"MAKE|MFLAGS", name)}

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = ["make", *arguments, f"VENV={tmp_path / 'venv'}", "ARGS="]
        return subprocess.run(
            command, cwd=ROOT, env=inherited, capture_output=True, text=True, check=False, timeout=30
        )

    return run


@pytest.fixture
def fake(tmp_path: Path) -> Callable[[str, str], Path]:
    """Make a program that is this Python but for a line of code that it runs first."""

    def make_fake(name: str, first: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f"""#!/bin/sh\nexec '{sys.executable}' -c "{first}; import sys; exec(sys.argv[1])" "$2"\n"""
        )
        path.chmod(0o755)
        return path

    return make_fake


OLD = "import sys; sys.version_info = (3, 10, 13)"


@pytest.mark.parametrize("goal", ["run", "test", "quick", "check", "campaign-kills"])
def test_an_old_python_is_refused_with_the_way_out(
    goal: str, make: Run, fake: Callable[[str, str], Path], tmp_path: Path
) -> None:
    old = fake("python3", OLD)
    ran = make(goal, f"PYTHON={old}")
    assert ran.returncode != 0
    [line] = (ran.stdout + ran.stderr).splitlines()
    assert f"{old} is Python 3.10; 3.11 or later is needed: PYTHON=python3.12 make {goal}" in line
    assert [path.name for path in tmp_path.iterdir()] == ["python3"]


def test_an_unknown_python_is_refused_with_the_way_out(make: Run) -> None:
    ran = make("run", "PYTHON=no-such-python")
    assert ran.returncode != 0
    [line] = (ran.stdout + ran.stderr).splitlines()
    assert "no-such-python is not found; 3.11 or later is needed: PYTHON=python3.12 make run" in line


def test_a_python_that_can_make_no_venv_is_refused_with_the_way_out(
    make: Run, fake: Callable[[str, str], Path], tmp_path: Path
) -> None:
    ran = make("run", f"PYTHON={fake('python3', 'import sys; sys.modules.update(ensurepip=None)')}")
    assert ran.returncode != 0
    [line] = (ran.stdout + ran.stderr).splitlines()
    assert f"apt install python{sys.version_info.major}.{sys.version_info.minor}-venv" in line
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("first", [OLD, "import sys; sys.modules.update(pip=None)"], ids=["old", "no pip"])
def test_a_venv_of_no_use_is_made_anew(first: str, make: Run, fake: Callable[[str, str], Path]) -> None:
    left = fake("venv/bin/python", first)
    (left.parents[1] / "pyvenv.cfg").touch()
    able = fake("python3", "import sys; sys.modules.update(ensurepip=sys)")
    ran = make("--just-print", "run", f"PYTHON={able}")
    assert f"{able} -m venv --clear {left.parents[1]}\n" in ran.stdout, ran


def test_a_venv_of_use_is_kept_whatever_python_is(make: Run, fake: Callable[[str, str], Path]) -> None:
    fake("venv/bin/python", "import sys; sys.modules.update(pip=sys)")
    ran = make("--just-print", "run", "PYTHON=no-such-python")
    assert ran.returncode == 0, ran
    assert "-m venv" not in ran.stdout
