"""Java programs: they end with what started them, and what keeps them from running is told as what it is."""

import os
import signal
import tempfile
import time
from pathlib import Path

import pytest

from prefixcap.errors import InputError
from prefixcap.metrics import METRICS, Scores, cache, score_captions
from prefixcap.metrics.java import run_java
from prefixcap.metrics.metric import MetricUnavailable
from prefixcap.metrics.spice_setup import setup_spice
from tests.metrics.coco_tools import needs_java
from tests.processes import Python, python

PLAIN = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"]
REFERENCES = {number: [f"a dog runs on sand {number}", "the dog is here"] for number in range(600)}
WITH_JAVA = """
import sys, threading
from prefixcap.metrics import score_captions
from prefixcap.metrics.caption_metrics import METEOR
words = ["dog", "cat", "man", "woman", "runs", "sits", "red", "blue", "sand", "street", "horse", "sofa"]
texts = [" ".join(words[(i * k) % 12] for k in range(1, 60)) for i in range(500)]
if sys.argv[1] == "score_captions":
    score_captions(dict(enumerate(texts)), {i: texts[i:i + 5] or ["a"] for i in range(len(texts))}, ["METEOR", "CIDEr"])
else:
    metric = METEOR()
    metric.update(texts, [[text] * 5 for text in texts])
    metric.compute()
"""


def java_of(process: int) -> list[int]:
    """METEOR's programs that a process started and that have not ended, or what stands in for them: their numbers."""
    started = " ".join(file.read_text() for file in Path(f"/proc/{process}/task").glob("*/children")).split()
    commands = {int(number): Path(f"/proc/{number}/cmdline").read_bytes() for number in started}
    return [number for number, command in commands.items() if b"MeteorStat" in command or b"sleep" in command]


def is_there(process: int) -> bool:
    """Whether a process runs; one that ended may wait to be collected."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@needs_java
@pytest.mark.parametrize(
    ("way", "number", "real"),
    [
        ("score_captions", signal.SIGTERM, True),
        ("score_captions", signal.SIGINT, False),
        ("metric", signal.SIGHUP, False),
    ],
)
def test_a_signal_to_the_process_alone_ends_java_too(
    way: str, number: signal.Signals, real: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """METEOR's real program, and one in its place that would run for ten minutes."""
    if not real:
        fake_java(tmp_path, monkeypatch, f"{NO_PARAPHRASES}; exec sleep 600")
    monkeypatch.setenv("PREFIXCAP_CACHE", str(tmp_path))
    process = Python("-c", WITH_JAVA, way)
    try:
        assert_java_ends(process, number)
    finally:
        process.kill()


def assert_java_ends(process: Python, number: signal.Signals) -> None:
    """Send a signal to a process as soon as it has started Java: both end."""
    until = time.monotonic() + 120
    while not (java := java_of(process.pid)):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(number)
    assert process.communicate()[0] == -number
    until = time.monotonic() + 30
    while is_there(java[0]):  # a process that is killed may take a moment to give its memory back
        assert time.monotonic() < until
        time.sleep(0.02)


SLOW_START = """
import subprocess, time
class Popen(subprocess.Popen):
    def __init__(self, command, **options):
        super().__init__(command, **options)
        if "MeteorStat" in " ".join(map(str, command)):
            time.sleep(2)
subprocess.Popen = Popen
"""


@needs_java
@pytest.mark.parametrize("way", ["score_captions", "metric"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_java_is_started(
    way: str, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a thread, and in the main one: the program is there, but the process does not know of it yet."""
    fake_java(tmp_path, monkeypatch, f"{NO_PARAPHRASES}; exec sleep 600")
    monkeypatch.setenv("PREFIXCAP_CACHE", str(tmp_path))
    process = Python("-c", SLOW_START + WITH_JAVA, way)
    try:
        assert_java_ends(process, number)
    finally:
        process.kill()


NO_PARAPHRASES = 'case "$*" in *Paraphrases*) for last; do :; done; : > "$last"; exit;; esac'


def fake_java(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    java = folder / "java"
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_an_error_beside_java_ends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A scorer in Python fails while Java would run for ten minutes."""
    monkeypatch.setenv("PREFIXCAP_CACHE", str(tmp_path))
    fake_java(tmp_path, monkeypatch, f"echo $$ > {tmp_path}/started; exec sleep 600")

    def fail(*_: object) -> None:
        while not (tmp_path / "started").exists() or not (tmp_path / "started").read_text():
            time.sleep(0.01)
        raise ZeroDivisionError

    monkeypatch.setattr(METRICS["CIDEr"], "statistics", fail)
    start = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        score_captions({1: "a dog"}, {1: ["a dog"]}, ["METEOR", "CIDEr"])
    assert time.monotonic() - start < 60
    assert not is_there(int((tmp_path / "started").read_text()))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "printf 'Picked up _JAVA_OPTIONS: -Xmx9m\njava.lang.OutOfMemoryError: Java heap space\n' >&2; exit 1",
            r"failed \(java.lang.OutOfMemoryError: Java heap space\): free memory",
        ),
        (
            "printf 'Error occurred during initialization of VM\\nToo small maximum heap\\n'; exit 1",
            r"failed \(Too small maximum heap\): free memory",
        ),
        (
            "echo 'Exception in thread main java.lang.UnsupportedClassVersionError: X' >&2; exit 1",
            "install Java 8 or newer, and score again",
        ),
        (
            "echo 'Exception in thread main java.io.IOException: No space left on device' >&2; exit 1",
            r"METEOR needs room for temporary files \(Exception .*No space left on device\): free some, or name",
        ),
        (
            "printf 'Picked up JAVA_TOOL_OPTIONS: -x\\nUnrecognized option: -x\\nError: Could not create the Java "
            "Virtual Machine.\\nError: A fatal exception has occurred. Program will exit.\\n' >&2; exit 1",
            r"failed \(Unrecognized option: -x\): check that `java -version` works",
        ),
    ],
)
def test_what_java_complains_of(script: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_java(tmp_path, monkeypatch, script)
    with pytest.raises(MetricUnavailable, match=message):
        run_java("METEOR", ["Program"], "text")


@needs_java
def test_a_heap_that_is_too_small_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Java itself, which says so on the standard output, and greets on the other."""
    monkeypatch.setenv("_JAVA_OPTIONS", "-Xmx1k")
    with pytest.raises(MetricUnavailable, match=r"failed \(Too small maximum heap\): free memory, and leave sizes"):
        run_java("SPICE", ["-version"], "")


def scored() -> Scores:
    return score_captions(dict.fromkeys(REFERENCES, "a dog runs"), REFERENCES, ["BLEU", "METEOR", "ROUGE-L", "CIDEr"])


def test_without_a_temporary_folder_only_meteor_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_java(tmp_path, monkeypatch, "exit 0")
    monkeypatch.setenv("PREFIXCAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "java")])  # which is a file
    scores = scored()
    assert list(scores.corpus) == PLAIN
    assert "METEOR needs room for temporary files ([Errno 2] No usable temporary" in scores.missing["METEOR"]
    assert scores.missing["METEOR"].endswith("name a folder by TMPDIR=FOLDER, and score again")


@needs_java
def test_a_full_temporary_folder_is_told_as_that(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A real one: files may not be longer than some bytes, so that writing fails as on a full disk."""
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "sys.dont_write_bytecode = True  # it would be cut\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from tests.metrics.test_java import scored\n"
        "scores = scored(); print(*scores.corpus, sep=','); print(scores.missing['METEOR'])"
    )
    done = python("-c", program, environment=os.environ | {"PREFIXCAP_CACHE": str(tmp_path)})
    names, reason = done.stdout.splitlines()
    assert names.split(",") == PLAIN
    assert reason.startswith("METEOR needs room for temporary files (")


def test_without_a_home_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pwd

    from prefixcap.utils import files

    def nobody(user: int) -> None:
        raise KeyError(user)

    monkeypatch.delenv("HOME")
    monkeypatch.setenv("PREFIXCAP_CACHE", "")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    files._temporary_cache.cache_clear()
    try:
        folder = files.user_cache()
        calls = []
        for _ in range(2):
            cache.cached("kind", "content", lambda: calls.append(1) or {})
        assert folder.parent == tmp_path and len(calls) == 1  # kept as long as the process runs
        assert capsys.readouterr().err.splitlines() == [
            "no home folder: nothing is kept for the next time; set PREFIXCAP_CACHE=FOLDER to keep it"
        ]
        with pytest.raises(InputError, match="no home folder to keep files in: set PREFIXCAP_CACHE=FOLDER"):
            setup_spice(tmp_path)
        files._temporary_cache.cache_clear()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
        scores = score_captions(dict.fromkeys(REFERENCES, "a dog"), REFERENCES, ["CIDEr", "SPICE"])
        assert list(scores.corpus) == ["CIDEr"]
        assert scores.missing["SPICE"].startswith("SPICE has no folder for its files: no home folder, and no temporary")
    finally:
        files._temporary_cache.cache_clear()


@pytest.mark.parametrize("folder", ["x" * 300, "file/below", "~nobody-of-that-name/x"])
def test_a_cache_that_cannot_be_written_to(folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFIXCAP_CACHE", folder)
    scores = score_captions(dict.fromkeys(REFERENCES, "a dog"), REFERENCES, ["CIDEr", "SPICE"])
    assert list(scores.corpus) == ["CIDEr"] and "setup-spice" in scores.missing["SPICE"]
