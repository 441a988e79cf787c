"""What the page reads from the OpenAPI document."""

import html
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from markupsafe import Markup


@dataclass(frozen=True)
class Operation:
    """An operation of the document, and how it is asked for; `path` still has its `{id}`."""

    method: str
    path: str
    headers: Mapping[str, str]
    told: Mapping[str, Any]

    @property
    def example(self) -> str:
        """The path with the document's examples in it."""
        path = self.path
        for parameter in self.told["parameters"]:
            if parameter["in"] == "path":
                path = path.replace(f"{{{parameter['name']}}}", parameter["example"])
        return path


def operations(document: Mapping[str, Any], root: str) -> Iterator[Operation]:
    """Yield the document's operations; `root` is what a proxy, or a server, puts before the app's paths."""
    for path, methods in document["paths"].items():
        for method, told in methods.items():
            # A GET has no body, whose type could be told.
            headers = {} if method == "get" else {"Content-Type": "application/json"}
            # Quoted, nothing in it can end the text of a snippet, in any language.
            yield Operation(method.upper(), quote(root + path, safe="/{}"), headers, told)


def shared_headers(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers that every answer has, told once on the page."""
    told = [
        answer["headers"]
        for methods in document["paths"].values()
        for operation in methods.values()
        for answer in operation["responses"].values()
    ]
    return {
        name: header for name, header in told[0].items() if all(each.get(name) == header for each in told)
    }


def words(schema: Mapping[str, Any]) -> str:
    """Return the type of a value, and what else limits it, in words."""
    if "const" in schema:
        return f"always {_code(schema['const'])}"
    type = schema["type"]
    said = [type if isinstance(type, str) else " or ".join(type)]
    if "format" in schema:
        said.append(schema["format"])
    if "enum" in schema:
        said.append(f"one of {', '.join(map(_code, schema['enum']))}")
    if "default" in schema:
        said.append(f"by default {_code(schema['default'])}")
    if "pattern" in schema:
        said.append(f"matches {_code(schema['pattern'])}")
    if "minimum" in schema:
        said.append(f"at least {schema['minimum']}")
    if "minItems" in schema:
        said.append(f"at least {schema['minItems']}")
    return ", ".join(said)


def in_code(text: str) -> Markup:
    """Return the text as HTML, with what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False)))  # noqa: S704


def indented(body: object) -> str:
    """Return a body as people read it."""
    return json.dumps(body, indent=2)


def as_text(text: str, url: str = "") -> Markup:
    """Return the text as HTML, not for an attribute; around the URL is an element, whose text may change."""
    # Not the quotes: they would make up a tenth of the page.
    text, url = html.escape(text, quote=False), html.escape(url, quote=False)
    return Markup(text.replace(url, f'<b class="url">{url}</b>') if url else text)  # noqa: S704


def _code(value: object) -> str:
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"
