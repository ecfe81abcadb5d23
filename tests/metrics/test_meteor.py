import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from pycocoevalcap.meteor.meteor import Meteor as CocoMeteor

from prefixcap.metrics.meteor import Meteor
from prefixcap.metrics.metric import MetricUnavailable
from prefixcap.metrics.ptb import tokenize
from tests.metrics.coco_tools import needs_java, needs_shared_data, shared_json

REFERENCES = ["a dog runs on the beach", "the brown dog runs", "a dog is running at the sea"]


def java_processes() -> list[str]:
    """Java processes that this one started and that still run, or wait to be collected."""
    lines = subprocess.run(["ps", "-o", "args", "--ppid", str(os.getpid())], capture_output=True, text=True).stdout
    return [line for line in lines.splitlines() if "java" in line]


def fake_java(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A program in the place of Java, for which there are no paraphrases, and then runs `script`."""
    java = folder / "java"
    no_paraphrases = 'case "$*" in *Paraphrases*) for last; do :; done; : > "$last"; exit;; esac'
    java.write_text(f"#!/bin/sh\n{no_paraphrases}\n{script}\n")
    java.chmod(0o755)
    monkeypatch.setenv("PREFIXCAP_CACHE", str(folder / "cache"))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.slow
@needs_java
@needs_shared_data
def test_scores_are_those_of_the_coco_tools(capfd: pytest.CaptureFixture[str]) -> None:
    """Of 300 images, some with perfect, empty and odd captions."""
    entries = random.Random(0).sample(shared_json("results/magic_coco_test.json"), 300)
    captions = [tokenize(entry["prediction"]) for entry in entries]
    references = [[tokenize(text) for text in entry["captions"]] for entry in entries]
    captions[:3] = [references[0][0], references[1][2], ""]
    references[3] = ["", ""]
    captions[4] = references[4][0] = "dog"
    captions[5] = "zzz"
    captions[6] += " | | |"
    tables = dict(enumerate(references)), {i: [text] for i, text in enumerate(captions)}
    corpus, per_image = CocoMeteor().compute_score(*tables)
    before = java_processes()
    # METEOR's separator within a caption, and half a surrogate pair, are only characters.
    odd = ["a dog runs on ||| sand", "a dog <!on|||a> beach", "half a pair \ud83d dog"]
    plain = ["a dog runs on sand", "a dog <!ona> beach", "half a pair ? dog"]
    odd_references = [[*REFERENCES, "a <!b|||c> d", "e ||| f g"]] * 6

    everything = Meteor().statistics(captions + odd + plain, references + odd_references)

    statistics = everything[:300]
    assert Meteor().score(statistics.sum(0)) == pytest.approx(corpus, abs=1e-12)
    assert Meteor().score(statistics)[:, 0] == pytest.approx(per_image, abs=1e-12)
    assert [per_image[i] for i in (0, 2, 3, 4, 5)] == [1, 0, 0, 1, 0]
    halves = np.stack([statistics[:150].sum(0), statistics[150:].sum(0)])
    assert Meteor().score(halves) == pytest.approx(np.stack([Meteor().score(half) for half in halves]))
    of_odd, of_plain = Meteor().score(everything[300:303]), Meteor().score(everything[303:])
    assert of_odd.tolist() == of_plain.tolist() and of_odd.min() > 0
    assert java_processes() == before
    assert capfd.readouterr() == ("", "")


def test_without_java_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MetricUnavailable, match=r"^METEOR needs Java .*install a JRE.*$"):
        Meteor().statistics(["a dog"], [REFERENCES])


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'first' >&2; echo 'no runtime here' >&2; exit 1", "no runtime here"),
        ("read line; exit 3", "exit status 3"),
        ("kill -9 $$", "exit status -9"),
        ("echo 'Error: what?'", "Error: what?"),
        ("echo 1 2 3", "1 2 3"),
        ("exit 0", ""),
    ],
)
def test_a_java_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, reason: str) -> None:
    fake_java(tmp_path, monkeypatch, script)
    with pytest.raises(MetricUnavailable) as error:
        Meteor().statistics(["a dog", "a cat"], [REFERENCES] * 2)
    assert f"failed ({reason})" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("memory", "heap"), [(3 << 30, 3 << 29), (64 << 30, 2 << 30)])
def test_java_takes_half_of_a_small_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, memory: int, heap: int
) -> None:
    fake_java(tmp_path, monkeypatch, 'echo "$*"')
    monkeypatch.setattr("prefixcap.metrics.meteor.memory_bytes", lambda: memory)
    with pytest.raises(MetricUnavailable, match=f" -Xmx{heap} "):
        Meteor().statistics(["a dog"], [REFERENCES])


def test_an_interrupt_ends_the_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_java(tmp_path, monkeypatch, f"echo >> {tmp_path}/started; exec sleep 600")

    def interrupt() -> None:
        started = tmp_path / "started"
        while not started.is_file():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            Meteor().statistics(["a dog", "a cat"], [REFERENCES] * 2)
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    children = subprocess.run(["ps", "-o", "args", "--ppid", str(os.getpid())], capture_output=True, text=True).stdout
    assert "sleep 600" not in children
