"""The API page in a browser: what is typed, sent, shown and told."""

import json
import re
from collections.abc import Callable, Iterator
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
from werkzeug.exceptions import NotFound
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.serving import WSGIRequestHandler, make_server

from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.docs_page import docs_page
from flask_mythic_clients.docs_page.snippets import LANGUAGES, snippet
from flask_mythic_clients.rights import Route

from ..hosts import ADMIN_KEY, Host, mounting
from .conftest import OpenPage

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

JSON = {"Content-Type": "application/json"}
MASKED = "Authorization: Bearer ••••••••"
PREFIX = "/behind a proxy"
NO_IDS = ["", "a b", "a" * 256, "../x", '"; rm -rf / #', "$(id)", "#{`id`}", "${1}", "<b class='url'>", "ä"]


class _Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None: ...


@pytest.fixture
def host(empty_database: Callable[[str], str]) -> Iterator[Host]:
    """A host with the page, and the clients `acme` and `other`."""
    with mounting(empty_database("sqlite"), MemoryStore()) as mount:
        host = mount(config={"MYTHIC_CLIENTS_ROUTES": list(Route)})
        host.flask.register_blueprint(docs_page())
        host.add(id="acme")
        host.add(id="other")
        yield host


@pytest.fixture
def origin(host: Host) -> Iterator[str]:
    """Where the host is served, also behind a prefix."""
    both = DispatcherMiddleware(NotFound(), {"/plain": host.flask, PREFIX: host.flask})
    server = make_server("127.0.0.1", 0, both, threaded=True, request_handler=_Quiet)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def url(origin: str) -> str:
    return f"{origin}/plain/docs"


def of(page: "Page", summary: str = "Delete a client") -> "Locator":
    """The part of the page that tells of a route."""
    return page.get_by_role("region", name=summary, exact=True)


def send(route: "Locator", expected: str) -> dict[str, Any]:
    """Press the button; return the body of the answer, whose status is as expected."""
    route.get_by_role("button", name="Send").click()
    outcome = route.get_by_role("status").filter(has_text=re.compile(rf"^{expected} after \d+ ms$"))
    outcome.wait_for()
    body: dict[str, Any] = json.loads(route.locator("h4:text-is('Body') + pre").inner_text())
    return body


def violations(page: "Page") -> list[Any]:
    """What axe-core finds wrong with the page as it is now."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found]


def code(route: "Locator") -> str:
    """The code that is shown."""
    return route.locator("pre[tabindex]:visible").text_content() or ""


def test_the_right_key_deletes_and_restores(url: str, host: Host, open_page: OpenPage) -> None:
    page = open_page(url)
    page.get_by_label("Your key").fill(ADMIN_KEY)
    assert send(of(page), "200 OK") == {"success": True, "deleted": True, "hard": False}
    assert [row.status for row in host.rows()] == [False, True]
    headers = of(page).locator("h4:text-is('Headers') + pre").inner_text()
    assert "cache-control: no-store" in headers
    assert send(of(page, "Restore a client"), "200 OK") == {"success": True, "restored": True}
    assert all(row.status for row in host.rows())
    assert len(send(of(page, "Read what was done to a client"), "200 OK")["records"]) == 2
    assert send(of(page, "See the status of deletions"), "200 OK")["ok"] is True


def test_a_wrong_key_no_key_and_an_unknown_client_are_refused(
    url: str, host: Host, open_page: OpenPage
) -> None:
    page, route = (page := open_page(url)), of(page)
    assert send(route, "401 UNAUTHORIZED")["code"] == 401
    page.get_by_label("Your key").fill("wrong")
    assert send(route, "401 UNAUTHORIZED")["code"] == 401
    assert 'error="invalid_token"' in route.locator("h4:text-is('Headers') + pre").inner_text()
    page.get_by_label("Your key").fill(ADMIN_KEY)
    route.get_by_label("id", exact=True).fill("nobody")
    assert send(route, "404 NOT FOUND")["code"] == 404
    assert [record for row in host.rows() for record in host.records(row.id)] == []


def test_a_removal_for_good_is_asked_about_first(url: str, host: Host, open_page: OpenPage) -> None:
    page, route = (page := open_page(url)), of(page)
    page.get_by_label("Your key").fill(ADMIN_KEY)
    route.get_by_label("hard").select_option("true")
    for answer in ("Keep it", None):
        route.get_by_role("button", name="Send").click()
        assert "/clients/acme?hard=true" in page.get_by_role("dialog").inner_text()
        assert violations(page) == []
        page.get_by_role("button", name=answer).click() if answer else page.keyboard.press("Escape")
        assert page.get_by_role("dialog").count() == 0
    assert len(host.rows()) == 2
    route.get_by_role("button", name="Send").click()
    page.get_by_role("button", name="Delete for good").click()
    route.get_by_text(re.compile("^200 OK after")).wait_for()
    assert [row.id for row in host.rows()] == ["other"]
    # Whoever previews it is asked nothing.
    preview = of(page, "See what a deletion would do")
    preview.get_by_label("id", exact=True).fill("other")
    preview.get_by_label("hard").select_option("true")
    assert send(preview, "200 OK")["hard"] is True


def test_the_code_and_the_preview_follow_what_is_typed(url: str, origin: str, open_page: OpenPage) -> None:
    page = open_page(url, permissions=["clipboard-read", "clipboard-write"])
    route = of(page)
    for id, hard in (("acme", None), ("other", "true"), ("-_", "false")):
        route.get_by_label("id", exact=True).fill(id)
        route.get_by_label("hard").select_option(hard or "")
        asked = f"{origin}/plain/api/v1/clients/{id}" + (f"?hard={hard}" if hard else "")
        for language, title in LANGUAGES.items():
            route.get_by_text(title, exact=True).click()
            route.get_by_role("button", name="Cop").click()
            page.get_by_role("button", name="Copied").wait_for()
            copied = page.evaluate("navigator.clipboard.readText()")
            assert copied == code(route) == snippet(language, "DELETE", asked, JSON)
        preview = route.locator("h4:text-is('Request preview') + pre").inner_text()
        assert preview.split("\n") == [f"DELETE {asked}", "Content-Type: application/json", ""]
    # The language is everywhere the one that was chosen.
    assert "Net::HTTP::Get" in code(of(page, "See the status of deletions"))


def test_without_a_clipboard_the_code_is_selected(url: str, open_page: OpenPage) -> None:
    page = open_page(url)
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")  # as over plain HTTP
    of(page).get_by_role("button", name="Copy").click()
    page.get_by_text("Selected, to be copied").wait_for()
    assert page.evaluate("`${getSelection()}`").strip() == code(of(page)).strip()


def test_the_key_is_sent_and_shown_nowhere(url: str, open_page: OpenPage) -> None:
    page, route = (page := open_page(url)), of(page)
    assert MASKED not in route.inner_text()
    page.get_by_label("Your key").fill(ADMIN_KEY)
    with page.expect_request("**/clients/acme") as asked:
        send(route, "200 OK")
    assert asked.value.headers["authorization"] == f"Bearer {ADMIN_KEY}"
    assert MASKED in route.inner_text()
    assert ADMIN_KEY not in page.content()
    kept = "[location.href, document.cookie, localStorage.length, sessionStorage.length, history.length]"
    href, cookie, *lengths, _ = page.evaluate(kept)
    assert (href, cookie, lengths) == (url, "", [0, 0])
    page.reload()
    assert page.get_by_label("Your key").input_value() == ""


def test_what_is_no_id_is_refused_and_comes_into_no_code(url: str, open_page: OpenPage) -> None:
    page, route = (page := open_page(url)), of(page)
    asked: list[str] = []
    page.on("request", lambda sent: asked.append(sent.url))
    field = route.get_by_label("id", exact=True)
    told = page.locator(f"#{field.get_attribute('aria-describedby')}")
    for id in NO_IDS:
        field.fill(id)
        assert field.get_attribute("aria-invalid") == "true"
        assert told.inner_text() == "id must match ^[a-zA-Z0-9_-]{1,255}$"
        assert route.get_by_role("button", name="Copy").is_disabled()
        for text in route.locator("form pre").all_text_contents():
            assert "/clients/<id>" in text or text == ""
            assert id == "" or id not in text
        field.press("Enter")
        assert field.evaluate("field => field === document.activeElement")
        field.fill("acme")
        assert (field.get_attribute("aria-invalid"), told.inner_text()) == ("false", "")
    assert asked == []


def test_what_is_no_key_is_refused(url: str, open_page: OpenPage) -> None:
    page = open_page(url)
    field = page.get_by_label("Your key")
    field.fill("two words")
    of(page).get_by_role("button", name="Send").click()
    assert field.evaluate("field => field === document.activeElement")
    assert "A key is letters" in page.locator("#key-wrong").inner_text()
    assert MASKED not in of(page).inner_text()


def test_the_keyboard_alone_will_do(url: str, host: Host, open_page: OpenPage) -> None:
    page = open_page(url)

    def tab_to(wanted: str) -> None:
        for _ in range(20):
            page.keyboard.press("Tab")
            if page.evaluate("wanted => document.activeElement.matches(wanted)", wanted):
                style = "getComputedStyle(document.activeElement.closest('label') ?? document.activeElement)"
                assert page.evaluate(f"{style}.outlineStyle") != "none"
                return
        pytest.fail(f"{wanted} is not reached")

    tab_to("#key")
    page.keyboard.type(ADMIN_KEY)
    tab_to("input[data-name=id]")
    page.keyboard.type("other")  # what stood there is selected
    tab_to("select")
    page.keyboard.type("true")
    tab_to("[name=language]")
    page.keyboard.press("ArrowRight")
    assert "import requests" in code(of(page))
    tab_to("pre.requests")
    tab_to("button.main")
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for()
    assert page.evaluate("document.activeElement.textContent") == "Keep it"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    of(page).get_by_text(re.compile("^200 OK after")).wait_for()
    assert [row.id for row in host.rows()] == ["acme"]
    assert page.evaluate("document.activeElement.textContent") == "Send"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_it_is_for_everybody_on_every_screen(scheme: str, width: int, url: str, open_page: OpenPage) -> None:
    page = open_page(url, viewport={"width": width, "height": 800}, color_scheme=scheme)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(15, 18, 22)") is (scheme == "dark")
    for details in page.locator("details").all():
        details.evaluate("details => details.open = true")
    page.get_by_label("Your key").fill("a wrong one")
    of(page, "Restore a client").get_by_label("id", exact=True).fill("a b")
    assert violations(page) == []
    page.get_by_label("Your key").fill("wrong")
    send(of(page), "401 UNAUTHORIZED")
    page.get_by_label("Your key").fill(ADMIN_KEY)
    send(of(page, "Read what was done to a client"), "404 NOT FOUND")
    send(of(page, "See the status of deletions"), "200 OK")
    assert violations(page) == []
    for title in LANGUAGES.values():
        of(page).get_by_text(title, exact=True).click()
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_behind_a_prefix_all_urls_are_right(origin: str, host: Host, open_page: OpenPage) -> None:
    page = open_page(f"{origin}{PREFIX}/docs")
    page.get_by_label("Your key").fill(ADMIN_KEY)
    assert send(of(page), "200 OK")["deleted"] is True
    assert f'"{origin}/behind%20a%20proxy/api/v1/clients/acme"' in code(of(page))
    assert [row.status for row in host.rows()] == [False, True]


def test_a_server_that_is_away_is_told(url: str, open_page: OpenPage) -> None:
    page = open_page(url)
    page.route("**/clients/acme", lambda route: route.abort())
    of(page).get_by_role("button", name="Send").click()
    of(page).get_by_text(re.compile("^No answer: ")).wait_for()


def test_without_scripts_the_code_can_be_read_and_nothing_is_sent(url: str, open_page: OpenPage) -> None:
    page = open_page(url, java_script_enabled=False)
    of(page).get_by_text("Go", exact=True).click()
    assert "http.MethodDelete" in code(of(page))
    assert of(page).get_by_role("button", name="Send").is_disabled()
