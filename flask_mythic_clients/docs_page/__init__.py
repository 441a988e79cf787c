"""A page that documents the routes and lets its reader try them, for hosts that want one; off by default."""

from urllib.parse import quote

from flask import Blueprint, Response, current_app, request, url_for
from jinja2 import Environment, PackageLoader, select_autoescape

from ..config import CLIENTS, Settings, check_kind
from ..openapi import openapi_document
from .reading import as_text, in_code, indented, operations, shared_headers, words
from .snippets import LANGUAGES, snippet

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
# Not the host's: that may escape nothing, and look up names of its own.
_TEMPLATES = Environment(
    loader=PackageLoader(__name__),
    autoescape=select_autoescape(),
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {"as_text": as_text, "in_code": in_code, "indented": indented, "words": words}
_TEMPLATES.globals |= {"LANGUAGES": LANGUAGES, "snippet": snippet}


def docs_page(name: str = CLIENTS) -> Blueprint:
    """Return a blueprint with the page at `/docs`, unless it is registered under another `url_prefix`.

    `name` is the kind of client. The page shows `openapi_document()` of the routes that the app's settings
    open, which it reads anew at each request. Whoever can reach it can read it; what it sends needs an admin
    key, which its reader types.
    """
    kind = check_kind(name)
    blueprint = Blueprint(f"mythic_{kind}_docs", __name__, url_prefix="/docs", static_folder="static")

    @blueprint.get("/", strict_slashes=False)
    def page() -> str:
        settings = Settings.from_config(current_app.config, kind)
        document = openapi_document(settings.url_prefix, kind, settings.routes)
        return _TEMPLATES.get_template("page.html").render(
            document=document,
            operations=list(operations(document, request.script_root)),
            shared=shared_headers(document),
            origin=quote(request.host_url.rstrip("/"), safe=":/[]"),
            styles=url_for(".static", filename="page.css"),
            script=url_for(".static", filename="page.js"),
        )

    @blueprint.after_request
    def restrict(answer: Response) -> Response:
        answer.headers.update(_HEADERS)
        return answer

    return blueprint
