"""Java programs of the COCO caption tools, each run as processes that end with the call."""

import errno
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from prefixcap.metrics.metric import MetricUnavailable

ASSETS = Path(__file__).parent / "assets"  # our own classes, compiled (a JRE has no compiler), beside their source


def tools_folder(metric: str) -> Path:
    """Where pycocoevalcap keeps the jars of a metric, found without importing it."""
    spec = importlib.util.find_spec(f"pycocoevalcap.{metric}")
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


class JavaPrograms:
    """Java processes that end with a `with` block, also where an error, Ctrl-C, SIGTERM or SIGHUP ends it.

    Python waits for its threads: without this, the thread that waits for Java would delay the end of the program; and
    when SIGTERM ends a process, the processes that it started go on running. A signal that comes while a process is
    being started, when there is nothing to kill yet, takes effect as soon as it is.
    """

    def __init__(self) -> None:
        self._starting: list[object] = []
        self._running = set[subprocess.Popen[bytes]]()
        self._ended = False
        self._signal: int | None = None  # that ended them

    def __enter__(self) -> "JavaPrograms":
        main = threading.current_thread() is threading.main_thread()  # no other can handle signals
        numbers = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)) if main else ()
        handlers = {number: signal.getsignal(number) for number in numbers}
        self._handlers = {
            number: handler
            for number, handler in handlers.items()
            if handler in (signal.SIG_DFL, signal.default_int_handler)
        }
        for number in self._handlers:
            signal.signal(number, self._end_on_signal)
        return self

    def __exit__(self, *raised: object) -> None:
        self.end()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def adopt(self) -> None:
        """Let programs that this thread starts be among those that end with the block."""
        _thread.programs = self

    def end(self) -> None:
        """End all that run, and let no other begin."""
        self._ended = True
        for process in list(self._running):
            process.kill()

    def run(self, command: Sequence[str], text: bytes) -> subprocess.CompletedProcess[bytes]:
        """As `subprocess.run`."""
        with self._start(command) as process:
            try:
                output, errors = process.communicate(text)
            finally:
                process.kill()
                self._running.remove(process)
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    def _start(self, command: Sequence[str]) -> "subprocess.Popen[bytes]":
        pipe, start = subprocess.PIPE, object()
        self._starting.append(start)
        try:
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
            self._running.add(process)
            if self._ended:  # meanwhile
                process.kill()
        finally:
            self._starting.remove(start)
        if self._signal is not None:
            self._raise_signal(self._signal)
        return process

    def _end_on_signal(self, number: int, frame: FrameType | None) -> None:
        self.end()
        signal.signal(number, self._handlers[number])
        self._signal = number
        self._raise_signal(number)

    def _raise_signal(self, number: int) -> None:
        if not self._starting:  # or the last one that is started does it
            os.kill(os.getpid(), number)


_thread = threading.local()


def run_java(metric: str, arguments: Sequence[str], text: str) -> str:
    """What a Java program prints for a text; its process is gone afterwards, also after an error.

    Raises:
        MetricUnavailable: there is no Java, or the program ends with an error.
    """
    java = shutil.which("java")
    if java is None:
        raise MetricUnavailable(
            f"{metric} needs Java (any version from 8): install a JRE, e.g. default-jre-headless, and score again"
        )
    command = [java, "-XX:-UsePerfData", *arguments]  # which would write to the temporary folder
    source = text.encode(errors="replace")  # half a surrogate pair cannot be encoded
    try:
        if programs := getattr(_thread, "programs", None):
            done = programs.run(command, source)
        else:
            with JavaPrograms() as programs:
                done = programs.run(command, source)
    except OSError as error:
        raise failure(metric, str(error)) from error
    if done.returncode != 0:
        errors = (done.stdout + b"\n" + done.stderr).decode(errors="replace")  # some are printed to the standard output
        raise failure(metric, _complaint(errors) or f"exit status {done.returncode}", errors)
    return str(done.stdout.decode(errors="replace"))


@contextmanager
def temporary_folder(metric: str) -> Iterator[Path]:
    """A folder for the files of a Java program, removed afterwards.

    Raises:
        MetricUnavailable: there is no folder for temporary files, or it is full.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="prefixcap-") as folder:
            yield Path(folder)
    except OSError as error:
        raise _no_temporary_files(metric, str(error)) from error


def failure(metric: str, reason: str, printed: str = "") -> MetricUnavailable:
    """The error for a Java program that failed.

    Args:
        metric: that it was to compute.
        reason: what it said.
        printed: all that it said, where more than the reason tells what is wrong.
    """
    if any(os.strerror(number) in printed for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)):
        return _no_temporary_files(metric, reason)
    remedy = "check that `java -version` works"
    if "UnsupportedClassVersionError" in printed:
        remedy = "install Java 8 or newer"
    elif any(sign in printed for sign in ("OutOfMemoryError", " heap", "insufficient memory")):
        remedy = "free memory, and leave sizes of the heap out of _JAVA_OPTIONS"
    return MetricUnavailable(f"{metric}'s Java program failed ({reason}): {remedy}, and score again")


def _no_temporary_files(metric: str, reason: str) -> MetricUnavailable:
    return MetricUnavailable(
        f"{metric} needs room for temporary files ({reason}): free some, or name a folder by TMPDIR=FOLDER, and score "
        "again"
    )


def _complaint(errors: str) -> str:
    """The last line of errors, without stack traces and without lines that Java prints for any error."""
    always = ("Picked up ", "NOTE: Picked up ", "Error: Could not create the Java", "Error: A fatal exception has occ")
    lines = [line for line in errors.splitlines() if line and not line[0].isspace() and not line.startswith(always)]
    return "".join(lines[-1:])
