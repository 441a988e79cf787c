"""The API page says what the document says, and brings nothing of anybody else's along."""

import html
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from flask_mythic_clients import ConfigurationError, openapi_document
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.docs_page import docs_page, reading
from flask_mythic_clients.docs_page.snippets import LANGUAGES, snippet
from flask_mythic_clients.rights import Route

from ..hosts import mounting

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
FILES = ["/docs/static/page.css", "/docs/static/page.js"]
LARGEST = 50_000  # bytes


def app_with(*kinds: str, **config: Any) -> Flask:
    """Make an app with the page of each kind, the first at /docs, the others beside it."""
    app = Flask("host")
    app.config.update(config)
    for kind in kinds or ("clients",):
        app.register_blueprint(docs_page(kind), url_prefix="/docs" if kind == "clients" else f"/docs-{kind}")
    return app


def get(app: Flask, path: str, **options: Any) -> Any:
    """Ask for a path; what is sent from a file is read, and the file closed."""
    return app.test_client().get(path, buffered=True, **options)


def read(app: Flask, path: str = "/docs", **options: Any) -> str:
    answer = get(app, path, **options)
    assert (answer.status_code, answer.mimetype) == (200, "text/html")
    return answer.text


def seen(page: str) -> str:
    """The text that a reader of the page sees."""
    return html.unescape(re.sub(r"<[^>]*>", "", page))


def code(page: str) -> list[tuple[str, str]]:
    """The code on the page: language and text."""
    return [
        (language, seen(text))
        for language, text in re.findall(r'<pre class="(\w+)"[^>]*>(.*?)</pre>', page, re.DOTALL)
    ]


def test_there_is_no_page_unless_it_is_mounted(empty_database: Callable[[str], str]) -> None:
    with mounting(empty_database("sqlite"), MemoryStore()) as mount:
        app = mount().flask
        assert app.test_client().get("/docs").status_code == 404
        assert [name for name in app.blueprints if "docs" in name] == []


@pytest.mark.parametrize("path", ["/docs", "/docs/", *FILES])
def test_the_policy_lets_in_what_is_the_pages_own_and_nothing_else(path: str) -> None:
    answer = get(app_with(), path)
    assert answer.status_code == 200
    assert answer.headers["Content-Security-Policy"] == POLICY
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"


def test_the_policy_is_for_the_page_alone() -> None:
    answer = app_with().test_client().get("/elsewhere")
    assert "Content-Security-Policy" not in answer.headers


def test_nothing_stands_in_line_and_nothing_is_anothers() -> None:
    page = read(app_with(MYTHIC_CLIENTS_ROUTES=list(Route)))
    assert re.findall(r"<style|<script(?! src=)|\sstyle=|\son\w+=|javascript:", page) == []
    assert set(re.findall(r'(?:src|href)="([^"#]+)"', page)) == set(FILES)
    for path in FILES:
        assert re.findall(r"//\w+\.|\burl\([^)]|@import", get(app_with(), path).text) == []


def test_all_of_it_is_small() -> None:
    app = app_with(MYTHIC_CLIENTS_ROUTES=list(Route))
    assert sum(len(get(app, path).data) for path in ("/docs", *FILES)) <= LARGEST


def told(document: Any) -> Iterator[str]:
    """Yield every text of the document, and every value, that its reader should see."""
    if isinstance(document, list):
        for each in document:
            yield from told(each)
        return
    if not isinstance(document, Mapping):
        return
    for name, value in document.items():
        match name, value:
            case (("title" | "summary" | "description" | "version" | "pattern"), str()):
                yield value.replace("`", "")
            case (("const" | "default"), _):
                yield value if isinstance(value, str) else json.dumps(value)
            case "enum", list():
                yield from value
            case "examples", dict():
                yield from (json.dumps(example["value"], indent=2) for example in value.values())
            case "properties" | "headers", dict():
                yield from value
        yield from told(value)


@pytest.mark.parametrize("kind", ["clients", "organizations"])
def test_everything_in_the_document_is_on_the_page(kind: str) -> None:
    document = openapi_document("/internal/v2", kind, list(Route))
    of_kind = f"MYTHIC_{kind.upper()}_"
    config = {f"{of_kind}ROUTES": list(Route), f"{of_kind}URL_PREFIX": "/internal/v2"}
    page = read(app_with(kind, **config), "/docs" if kind == "clients" else f"/docs-{kind}")
    shown = seen(page)
    del document["tags"]  # which group the routes of a document that has more than these
    missing = [text for text in {*told(document), *document["paths"]} if text not in shown]
    assert missing == []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert f'data-method="{method.upper()}" data-path="{path}"' in page
            [part] = re.findall(
                rf'<section class="operation" aria-labelledby="{operation["operationId"]}">(.*?)</section>',
                page,
                re.DOTALL,
            )
            assert re.findall(r'<b class="of-\d">(\d+)</b>', part) == list(operation["responses"])


@pytest.mark.parametrize(
    "routes", [["delete"], ["status", "restore"], "preview,history", list(Route)], ids=str
)
def test_it_shows_the_routes_that_are_open_and_no_other(routes: Any) -> None:
    page = read(app_with(MYTHIC_CLIENTS_ROUTES=routes))
    paths = openapi_document(routes=routes)["paths"]
    expected = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    assert re.findall(r'data-method="(\w+)" data-path="([^"]+)"', page) == expected
    assert [language for language, _ in code(page)] == list(LANGUAGES) * len(expected)


def test_each_kind_has_a_page_of_its_own_in_one_app() -> None:
    app = app_with(
        "clients",
        "organizations",
        MYTHIC_ORGANIZATIONS_URL_PREFIX="/v9",
        MYTHIC_ORGANIZATIONS_ROUTES="restore",
    )
    assert "/organizations/" not in read(app)
    page = read(app, "/docs-organizations")
    assert 'data-method="POST" data-path="/v9/organizations/{id}/restore"' in page
    assert 'src="/docs-organizations/static/page.js"' in page


def test_one_page_may_serve_several_apps() -> None:
    blueprint, pages = docs_page(), []
    for prefix in ("/one", "/two"):
        app = Flask("host")
        app.config["MYTHIC_CLIENTS_URL_PREFIX"] = prefix
        app.register_blueprint(blueprint, url_prefix=f"{prefix}/docs", name="theirs")
        pages.append(read(app, f"{prefix}/docs"))
    assert ['data-path="/one/clients/{id}"' in page for page in pages] == [True, False]
    assert ['src="/two/docs/static/page.js"' in page for page in pages] == [False, True]


def test_a_name_that_is_no_kinds_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^name= takes a plural"):
        docs_page("No kind")


def test_behind_a_prefix_of_a_proxy_all_urls_have_it() -> None:
    client = Client(DispatcherMiddleware(Flask("other"), {"/behind/it": app_with()}))
    page = client.get("/behind/it/docs", base_url="https://accounts.example").text
    assert 'data-path="/behind/it/api/v1/clients/{id}"' in page
    assert set(re.findall(r'(?:src|href)="([^"#]+)"', page)) == {f"/behind/it{path}" for path in FILES}
    for _, text in code(page):
        assert '"https://accounts.example/behind/it/api/v1/clients/acme"' in text


HOSTILE = "\"$(id)`id`#{x}';<b>"


def test_nothing_that_a_request_or_a_setting_brings_ends_a_text_of_the_code() -> None:
    app = app_with(MYTHIC_CLIENTS_URL_PREFIX="/" + re.sub("[<>]", "", HOSTILE))
    environ = {"SCRIPT_NAME": f"/{HOSTILE}", "HTTP_HOST": f"a{HOSTILE}"}
    page = read(app, environ_overrides=environ)
    urls = re.findall(r'<b class="url">(.*?)</b>', page)
    assert set(urls) == {urls[0]}
    assert re.fullmatch(r"http:[\w.%/:{}-]+/clients/acme", urls[0])
    plain = dict(code(read(app_with())))
    for language, text in code(page):
        assert text.replace(urls[0], "URL") == plain[language].replace(
            "http://localhost/api/v1/clients/acme", "URL"
        )
    assert "<b>" not in page
    assert "#{" not in urls[0]


def test_the_hosts_own_templates_and_their_settings_do_not_matter() -> None:
    app = app_with()
    expected = read(app)
    app = app_with()
    app.jinja_options = {"variable_start_string": "[[", "variable_end_string": "]]"}
    app.jinja_env.autoescape = False
    app.context_processor(lambda: {"document": None, "operations": None})
    assert read(app) == expected


def test_code_in_a_description_is_code_and_its_marks_are_text() -> None:
    assert reading.in_code("a `b<c>` & `d`") == "a <code>b&lt;c&gt;</code> &amp; <code>d</code>"


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_code_never_has_a_key_but_reads_it_from_the_environment(language: str) -> None:
    text = snippet(language, "DELETE", "http://127.0.0.1/x", {"Content-Type": "application/json"})
    assert "ADMIN_KEY" in text
    assert "mythic_" not in text
    # A GET has no body, so its type is not told.
    assert "Content-Type" in text
    assert "Content-Type" not in snippet(language, "GET", "http://127.0.0.1/x", {})
