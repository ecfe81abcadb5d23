"""The documents, and what stands in them."""

import re
from pathlib import Path

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

BLOCK = re.compile(r"(<!-- norun: [^\n]+ -->\n)?^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^ {4,}((?:prefixcap|python|make|pip) .*)$", re.MULTILINE)
INLINE = re.compile(r"`((?:prefixcap|python) [^`]+)`")


def name_of(page: Path) -> str:
    """A page's path below the repository."""
    return str(page.relative_to(ROOT))


def code_blocks(page: Path) -> list[str]:
    """The Python of a page that can be run, block by block, each after as many blank lines as stand before it."""
    text = page.read_text(encoding="utf-8")
    return ["\n" * text[: found.start(2)].count("\n") + found[2] for found in BLOCK.finditer(text) if not found[1]]


def commands(page: Path) -> list[str]:
    """The command lines of a page, continued lines joined, without comments."""
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
    found = COMMAND.findall(text) + INLINE.findall(text)
    return [re.sub(r"\s+#.*$", "", command).strip() for command in found]
