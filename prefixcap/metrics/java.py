"""Java programs of the COCO caption tools, each run as processes that end with the call."""

import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from prefixcap.metrics.scorer import MetricUnavailable

ASSETS = Path(__file__).parent / "assets"  # our own classes, beside their source


def tools_folder(metric: str) -> Path:
    """Where pycocoevalcap keeps the jars of a metric, found without importing it."""
    spec = importlib.util.find_spec(f"pycocoevalcap.{metric}")
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


def run_java(metric: str, arguments: Sequence[str], text: str) -> str:
    """What a Java program prints for a text, in a process that is gone afterwards, whatever happens.

    It reads and writes files: nobody has to feed it, and it never waits for anybody.

    Raises:
        MetricUnavailable: there is no Java, or the program ends with an error.
    """
    java = shutil.which("java")
    if java is None:
        raise MetricUnavailable(
            f"{metric} needs Java (any version from 8): install a JRE, e.g. default-jre-headless, and score again"
        )
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        source.write(text.encode(errors="replace"))  # half a surrogate pair is no text in UTF-8
        source.seek(0)
        try:
            done = subprocess.run([java, *arguments], stdin=source, stdout=output, stderr=errors, check=False)
        except OSError as error:
            raise failure(metric, str(error)) from error
        if done.returncode != 0:
            raise failure(metric, _last_line(_content(errors)) or f"exit status {done.returncode}")
        return _content(output)


def failure(metric: str, reason: str) -> MetricUnavailable:
    """The error for a Java program that failed."""
    return MetricUnavailable(
        f"{metric}'s Java program failed ({reason}): check that `java -version` works, and score again"
    )


def _content(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _last_line(errors: str) -> str:
    """What a program complained about last, without the places that Java names after it."""
    lines = [line for line in errors.splitlines() if line and not line[0].isspace()]
    return "".join(lines[-1:])
