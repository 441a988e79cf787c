"""No block of the pages is left untried, and no link leads nowhere."""

import re
import shlex
import shutil
from threading import Thread

import pytest
from werkzeug.serving import make_server

from ..documents import OPERATING, PAGES, README, SCHEDULERS, TRACING, blocks, languages
from ..example.conftest import ROOT
from .conftest import Deployed


def test_the_blocks_are_those_that_are_tried() -> None:
    # cron, systemd, the route of the probes, the monitor, Celery
    assert languages(SCHEDULERS) == ["text", "sh", "python", "sh", "sh"]
    # the packages, the recipe, a job, the setting
    assert languages(TRACING) == ["sh", "python", "python", "sh"]
    # the commands and the log, crontabs and an audit, the mount
    assert {*languages(OPERATING)} == {"", "text", "python"}


@pytest.mark.parametrize("name", ["README", *PAGES])
def test_the_links_lead_somewhere(name: str) -> None:
    page = README if name == "README" else PAGES[name]
    folder = ROOT if name == "README" else ROOT / "docs"
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)]*)\)", page):
        file = folder / path if path else folder / f"{name}.md"
        assert file.exists(), path
        assert not anchor or anchor in anchors(file.read_text()), anchor


def anchors(page: str) -> set[str]:
    """Return what a link may name in a page, as code hosts make it of headings."""
    headings = re.findall(r"^#+ (.*)", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_every_page_is_named_in_the_readme_which_is_short() -> None:
    assert {f"docs/{name}.md" for name in PAGES} <= set(re.findall(r"\]\(([^)#]+)\)", README))
    assert len(README.splitlines()) <= 200


def test_the_packages_of_the_tracing_page_are_those_of_the_tests() -> None:
    [text] = blocks(TRACING, "sh", "pip")
    extras = re.findall(r"^ +(opentelemetry-[a-z-]+)>=", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    assert sorted(text.split()[2:]) == sorted(extras)


def test_the_monitor_is_answered(deployed: Deployed) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed, so the monitor's example cannot run.")
    [text] = [text for text in blocks(SCHEDULERS, "sh") if "curl" in text]
    environment = deployed.folder / "mythic-clients.env"
    key = environment.read_text().strip().partition("=")[2].partition("=")[2]
    app = deployed.app(
        MYTHIC_CLIENTS_ROUTES="delete,status", MYTHIC_CLIENTS_ADMIN_KEYS=f"probe={key};may=status"
    )
    (deployed.folder / "header").write_text(f"Authorization: Bearer {deployed.key}\n")
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        command = shlex.split(text.replace("https://app.example", f"http://127.0.0.1:{server.port}"))
        assert deployed.run(*command).returncode == 22  # curl's code for the 503: one is pending
        with deployed.host.flask.app_context():
            deployed.host.clients.service.reconcile()
        assert deployed.run(*command).returncode == 0
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
