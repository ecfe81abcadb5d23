"""The COCO caption tools as they are, and the data that the tests give to them."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pycocoevalcap.tokenizer.ptbtokenizer as ptbtokenizer
import pytest

_DEFAULT_SHARED_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
SHARED_DATA = Path(os.environ.get("PREFIXCAP_SHARED_DATA", _DEFAULT_SHARED_DATA))

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="java is not on PATH")
needs_shared_data = pytest.mark.skipif(
    not (SHARED_DATA / "results").is_dir(), reason=f"no captions at {SHARED_DATA} (PREFIXCAP_SHARED_DATA)"
)


def java_tokenize(captions: list[str], folder: Path) -> list[str]:
    """What pycocoevalcap makes of captions: one run of the Java tokenizer, then without punctuation."""
    file = folder / "captions.txt"
    file.write_text("\n".join(captions), encoding="utf-8", newline="\n")
    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    run = subprocess.run([*command, str(file)], capture_output=True, check=True)
    lines = run.stdout.decode("utf-8").split("\n")
    assert len(lines) == len(captions)
    dropped = ptbtokenizer.PUNCTUATIONS
    return [" ".join(word for word in line.rstrip().split(" ") if word not in dropped) for line in lines]


def shared_json(name: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((SHARED_DATA / name).read_text(encoding="utf-8"))
    return entries
