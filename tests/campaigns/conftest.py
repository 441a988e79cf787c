"""What the campaigns share: a size that the command line sets, and a summary of the figures reached."""

from collections.abc import Callable, Iterator

import pytest

from tests.hosts import KeyValue

from .served import Eyes

FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture
def size(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """Return the size of a campaign: `--size`, or the default it is asked with."""

    def size(default: int) -> int:
        given: int | None = request.config.getoption("--size")
        return default if given is None else given

    return size


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Keep figures for the summary at the end of the run, as `name=value`."""
    lines = request.config.stash.setdefault(FIGURES, [])

    def report(**figures: object) -> None:
        told = ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in figures.items())
        lines.append(f"{request.node.name}  {told}")

    return report


@pytest.fixture
def eyes(database_url: str, empty_kv: Callable[[str], KeyValue]) -> Iterator[Eyes]:
    """Both stores for a host to be served on, on each database; the tables are made."""
    kv = empty_kv("either")
    assert kv.url is not None
    eyes = Eyes(database_url, kv.url)
    eyes.prepare()
    yield eyes
    eyes.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the figures."""
    if lines := config.stash.get(FIGURES, []):
        terminalreporter.section("campaigns")
        for line in lines:
            terminalreporter.line(line)
