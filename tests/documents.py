"""The README and the pages in docs/, as the tests read them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
OPERATING, SCHEDULERS, TRACING = PAGES["operating"], PAGES["schedulers"], PAGES["tracing"]
# Recipes for the machines around an app have tests of their own, in deploy/.
GUIDE = "\n".join(
    [README, *(page for name, page in PAGES.items() if name not in ("operating", "schedulers", "tracing"))]
)
_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str, containing: str = "") -> list[str]:
    """Return the code blocks of a language; of none where that is empty."""
    found = [
        (name, re.sub(r"^   ", "", text, flags=re.MULTILINE) if indent else text)
        for indent, name, text in _BLOCK.findall(page)
    ]
    return [text for name, text in found if name == language and containing in text]


def languages(page: str) -> list[str]:
    """Return the languages of all code blocks, in their order."""
    return [name for _, name, _ in _BLOCK.findall(page)]
