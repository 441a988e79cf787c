"""What a wheel and a source distribution hold."""

import configparser
import email
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config() -> configparser.ConfigParser:
    """What setup.cfg says."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, built from a copy."""
    folder = tmp_path_factory.mktemp("build")
    tracked = [path for path in ROOT.iterdir() if path.name[0] != "." and path.suffix != ".egg-info"]
    for path in tracked:
        copy = shutil.copytree if path.is_dir() else shutil.copy2
        if path.name not in ("build", "dist", "instance"):
            copy(path, folder / path.name)
    build = "from setuptools import build_meta as b; b.build_sdist('out'); b.build_wheel('out')"
    (folder / "out").mkdir()
    subprocess.run([sys.executable, "-c", build], cwd=folder, check=True, capture_output=True)
    return folder / "out"


def test_the_wheel_holds_the_package_alone(built: Path) -> None:
    [wheel] = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"flask_mythic_clients"}
    assert "flask_mythic_clients/py.typed" in names
    assert "flask_mythic_clients/testing/key_value_store.py" in names
    files = [path for path in (ROOT / "flask_mythic_clients").rglob("*") if path.is_file()]
    # Of each file, also those that are no Python: the API page is made of some.
    sources = {str(path.relative_to(ROOT)) for path in files if path.suffix != ".pyc"}
    assert sources <= set(names)


def test_the_sdist_holds_the_tests_and_the_example(built: Path) -> None:
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("tests/conftest.py", "tests/unit/test_package.py", "example_app/__main__.py"):
        assert name in names
    assert {"LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "setup.cfg"} <= names
    assert "flask_mythic_clients/docs_page/templates/snippets/curl.jinja" in names
    assert not any(name.endswith(".pyc") for name in names)


def test_the_metadata_tells_the_licence_the_pythons_and_the_extra_for_tests(
    built: Path, config: configparser.ConfigParser
) -> None:
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata["License-Expression"] == "MIT"
    # A classifier beside the expression would be refused by PyPI.
    classifiers = metadata.get_all("Classifier", [])
    assert not [classifier for classifier in classifiers if classifier.startswith("License")]
    pythons = re.findall(
        r"^Programming Language :: Python :: (3\.\d+)$", "\n".join(classifiers), re.MULTILINE
    )
    [later] = re.findall(r"^LATER_PYTHONS = (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert pythons == [config["options"]["python_requires"].removeprefix(">="), *later.split()]
    requirements = metadata.get_all("Requires-Dist", [])
    assert [line for line in requirements if 'extra == "testing"' in line] == [
        f'{config["options.extras_require"]["testing"]}; extra == "testing"'
    ]


def test_requirements_have_lower_bounds_only(config: configparser.ConfigParser) -> None:
    requirements = config["options"]["install_requires"].split("\n")
    for extra in config["options.extras_require"].values():
        requirements += extra.split("\n")
    assert not [line for line in requirements if "<" in line or "==" in line.partition(";")[0] or "~" in line]
