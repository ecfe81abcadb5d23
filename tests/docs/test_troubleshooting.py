"""The messages that the page names are those of the code."""

import re

from tests.conftest import ROOT


def test_messages_are_in_the_code() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    seen = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")]
    messages = [part for cell in seen for part in re.findall(r"`([^`]+ [^`]+)`", cell) if not part.startswith("--")]
    assert len(messages) >= 4
    files = [*(ROOT / "prefixcap").rglob("*.py"), *(ROOT / "data_prep").rglob("*.py")]
    code = re.sub(r"\{.*?\}", "*", " ".join(file.read_text(encoding="utf-8") for file in files))
    for message in messages:
        words = message.replace("METEOR", r"(METEOR|\*)").replace("the loss", r"(the loss|\*)")
        assert re.search(words, code), message
