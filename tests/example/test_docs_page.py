"""The code on the example's API page does what it says, in each language, also after its URL has changed."""

import html
import re
import shutil

import pytest
import requests

from flask_mythic_clients.rights import Route

from .conftest import Example
from .test_readme import CALLERS

# What each route's code prints, or how that begins; in this order, first as the page has it.
AS_SHOWN = {
    Route.DELETE: "{success:true,deleted:true,hard:false}",
    Route.RESTORE: "{success:true,restored:true}",
    Route.HISTORY: "{id:acme,records:[{record:",
    Route.PREVIEW: "{id:acme,hard:false,allowed:true,reason:",
    Route.STATUS: "{ok:true,pending:0,",
}
# Then for another client, and for good.
CHANGED = {
    Route.RESTORE: "{success:true,restored:true}",
    Route.PREVIEW: "{id:demo-1,hard:true,allowed:true,reason:",
    Route.DELETE: "{success:true,deleted:true,hard:true}",
    Route.HISTORY: "{id:demo-1,records:[{record:",
}


def snippets(page: str, caller: str) -> dict[Route, tuple[str, str]]:
    """Read each route's code in a language off the page, with the URL that the page would change."""
    found = {}
    blocks = re.findall(rf'<pre class="{caller}"[^>]*>(.*?)</pre>', page, re.DOTALL)
    for route, block in zip(Route, blocks, strict=True):
        [url] = re.findall(r'<b class="url">(.*?)</b>', block)
        found[route] = html.unescape(re.sub("<[^>]*>", "", block)), html.unescape(url)
    return found


@pytest.mark.parametrize("caller", CALLERS)
def test_the_code_on_the_page_asks_for_each_route(caller: str, example: Example) -> None:
    tool, _, _, name, command = CALLERS[caller]
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed, so the {caller} code cannot run.")
    example.environment |= {"MYTHIC_CLIENTS_ROUTES": ",".join(Route), "GOCACHE": f"{example.folder / 'go'}"}
    example.start()
    found = snippets(requests.get(f"{example.url}/docs", timeout=10).text, caller)

    def run(text: str) -> tuple[int, str]:
        (example.folder / name).write_text(text)
        ran = example.run(*command, name)
        # Each language prints a body in its own way.
        return ran.returncode, re.sub(r"[\s'\"]", "", ran.stdout).lower()

    for route, printed in AS_SHOWN.items():
        text, _ = found[route]
        code, output = run(text)
        assert (code, output[: len(printed)]) == (0, printed), (route, output)
    for route, printed in CHANGED.items():
        text, url = found[route]
        changed = url.replace("/acme", "/demo-1")
        if route in (Route.DELETE, Route.PREVIEW):
            changed += "?hard=true"
        code, output = run(text.replace(url, changed))
        assert (code, output[: len(printed)]) == (0, printed), (route, output)
    assert example.get("demo-1").status_code == 404
    # As it stands while no id is typed: refused, be it by the server or before.
    text, url = found[Route.DELETE]
    _, output = run(text.replace(url, url.replace("/acme", "/<id>")))
    assert "success:" not in output
    assert example.get("acme").json()["status"] is True
