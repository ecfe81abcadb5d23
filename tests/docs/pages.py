"""The pages of the documentation, and the code and commands in them."""

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
    """The Python blocks of a page that can be run, each after blank lines that keep its line numbers in tracebacks."""
    text = page.read_text(encoding="utf-8")
    return ["\n" * text[: block.start(2)].count("\n") + block[2] for block in BLOCK.finditer(text) if not block[1]]


def commands(page: Path) -> list[str]:
    """The command lines of a page, continued lines joined, without comments."""
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
    return [re.sub(r"\s+#.*$", "", command).strip() for command in COMMAND.findall(text) + INLINE.findall(text)]
