"""A request as code in each language of the page; each is written once, in a template of its name."""

from collections.abc import Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined

LANGUAGES = {
    "curl": "curl",
    "requests": "Python",
    "fetch": "JavaScript",
    "go": "Go",
    "ruby": "Ruby",
}
"""A template's name → the language's, for people."""

_TEMPLATES = Environment(
    loader=PackageLoader(__package__, "templates/snippets"),
    autoescape=False,  # noqa: S701 # it is plain text; the page escapes it
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def snippet(language: str, method: str, url: str, headers: Mapping[str, str]) -> str:
    """Return a program that sends the request; it reads the admin key from the variable ADMIN_KEY.

    All that is put in is the caller's to check: a URL of quoted parts, names and values of letters.
    """
    template = _TEMPLATES.get_template(f"{language}.jinja")
    return template.render(method=method, url=url, headers=headers)
