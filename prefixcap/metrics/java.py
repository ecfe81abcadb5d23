"""Java programs of the COCO caption tools, each run as processes that end with the call."""

import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from prefixcap.metrics.scorer import MetricUnavailable

ASSETS = Path(__file__).parent / "assets"  # our own classes, beside their source


def tools_folder(metric: str) -> Path:
    """Where pycocoevalcap keeps the jars of a metric, found without importing it."""
    spec = importlib.util.find_spec(f"pycocoevalcap.{metric}")
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


def run_java(metric: str, arguments: Sequence[str], inputs: Sequence[str]) -> list[str]:
    """What a Java program prints for each of several inputs, all at the same time, each in a process of its own.

    Raises:
        MetricUnavailable: there is no Java, or the program ends with an error.
    """
    java = shutil.which("java")
    if java is None:
        raise MetricUnavailable(
            f"{metric} needs Java (any version from 8): install a JRE, e.g. default-jre-headless, and score again"
        )
    try:
        with ExitStack() as stack:
            processes = [stack.enter_context(_process([java, *arguments], text)) for text in inputs]
            for process in processes:
                if process.popen.wait() != 0:
                    raise failure(metric, _last_line(process) or f"exit status {process.popen.returncode}")
            return [_content(process.output) for process in processes]
    except OSError as error:
        raise failure(metric, str(error)) from error


def failure(metric: str, reason: str) -> MetricUnavailable:
    """The error for a Java program that failed."""
    return MetricUnavailable(
        f"{metric}'s Java program failed ({reason}): check that `java -version` works, and score again"
    )


class _Process(NamedTuple):
    popen: subprocess.Popen[bytes]
    output: IO[bytes]
    errors: IO[bytes]


@contextmanager
def _process(command: Sequence[str], text: str) -> Iterator[_Process]:
    """A process that reads `text` and is gone afterwards, whatever happens.

    It reads and writes files: nobody has to feed it, and it never waits for anybody.
    """
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        source.write(text.encode(errors="replace"))  # half a surrogate pair is no text in UTF-8
        source.seek(0)
        popen = subprocess.Popen(command, stdin=source, stdout=output, stderr=errors)
        try:
            yield _Process(popen, output, errors)
        finally:
            popen.kill()
            popen.wait()


def _content(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _last_line(process: _Process) -> str:
    """What a program complained about last, without the places that Java names after it."""
    lines = [line for line in _content(process.errors).splitlines() if line and not line[0].isspace()]
    return "".join(lines[-1:])
