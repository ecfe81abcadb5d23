import json
import os
import sqlite3
import subprocess
import sys
import zipfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import prefixcap.metrics.spice
from prefixcap.metrics.java import ASSETS, tools_folder
from prefixcap.metrics.metric import MetricUnavailable
from prefixcap.metrics.spice import Spice
from prefixcap.metrics.spice_setup import CORENLP_FILES, spice_folder
from tests.metrics.coco_tools import needs_java

# True positives, false positives and false negatives of each image, as pycocoevalcap's SpiceScorer gives them (run
# once with CoreNLP's whole set of models, Java 17 and Rhino for its JavaScript, -detailed); its tuples are these.
IMAGES = [
    (["a dog runs on the beach", "a dog runs on the beach"], (3, 0, 0)),
    # car, car-red of: car, car-red, car-near-house, horse, house, man, ride
    (["two red cars", "a red car near a house", "a man rides a horse"], (2, 0, 5)),
    # sofa, sofa-black of: couch, couch-black, cat, cat-sleep on-couch
    (["a black sofa", "a cat sleeps on a black couch"], (2, 0, 2)),
    # dog, london, man, man-have-dog, man-in-london of: dog, london, man, dog-two, john, john-have-dog, july,
    # london-on-monday, london-tmod-july, man-walk with-dog, monday
    (
        [
            "a man and his dog in london",
            "john walks his dog in london on monday july 4 2011",
            "the man walks with two dogs",
        ],
        (3, 2, 8),
    ),
    (["running quickly", "a cat"], (0, 0, 0)),
    (["", "a dog"], (0, 0, 1)),
    (["a cat", "", ""], (0, 0, 0)),
    # table, table-café of: table, café, table-at-café
    (["a café table", "a table at the café"], (1, 1, 2)),
]
CAPTIONS = [texts[0] for texts, _ in IMAGES]
REFERENCES = [texts[1:] for texts, _ in IMAGES]
F_SCORES = [2 * found / max(2 * found + wrong + missed, 1) for _, (found, wrong, missed) in IMAGES]

_CORENLP = [spice_folder() / file for file in CORENLP_FILES]
needs_corenlp = pytest.mark.skipif(
    not all(file.is_file() for file in _CORENLP), reason="CoreNLP is not there: prefixcap setup-spice gets it"
)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache folder, with files where the jars belong."""
    monkeypatch.setenv("PREFIXCAP_CACHE", str(tmp_path))
    folder = tmp_path / "spice"
    folder.mkdir()
    for file in CORENLP_FILES:
        (folder / file).touch()
    return folder


def _javac_17() -> bool:
    try:
        return subprocess.run(["javac", "-version"], capture_output=True, text=True).stdout.startswith("javac 17.")
    except OSError:
        return False


@pytest.mark.skipif(not _javac_17(), reason="javac 17 is not there; other compilers may write other bytes")
@pytest.mark.parametrize(
    "source",
    [
        "MeteorStatistics",
        "Paraphrases",
        "edu/cmu/meteor/aligner/SynonymMatcher",
        pytest.param("SpiceScores", marks=needs_corenlp),
    ],
)
def test_the_java_classes_are_what_their_source_compiles_to(tmp_path: Path, source: str) -> None:
    jars = tools_folder("spice")
    classes = [jars / "spice-1.0.jar", _CORENLP[0], jars / "lib" / "json-simple-1.1.1.jar"]
    classes.append(tools_folder("meteor") / "meteor-1.5.jar")
    command = ["javac", "--release", "8", "-cp", os.pathsep.join(map(str, classes)), "-d", str(tmp_path)]
    command += ["-sourcepath", str(ASSETS)]
    subprocess.run([*command, str(ASSETS / f"{source}.java")], check=True, capture_output=True)
    compiled = {file.name: file.read_bytes() for file in tmp_path.glob(f"{source}*.class")}
    assert compiled and compiled == {file.name: file.read_bytes() for file in ASSETS.glob(f"{source}*.class")}


def test_each_java_class_has_a_source() -> None:
    sources = {file.stem for file in ASSETS.rglob("*.java")}
    assert {file.stem.partition("$")[0] for file in ASSETS.rglob("*.class")} == sources


@pytest.mark.slow
@needs_java
@needs_corenlp
def test_scores_of_two_processes_at_once_are_those_of_the_java_tool(
    cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for file, original in zip(CORENLP_FILES, _CORENLP, strict=True):
        (cache / file).unlink()
        (cache / file).symlink_to(original)
    code = (
        "import json, sys; from prefixcap.metrics.spice import Spice; "
        "print(json.dumps(Spice().statistics(*json.load(sys.stdin)).tolist()))"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdin is not None
    other.stdin.write(json.dumps([CAPTIONS[::-1], REFERENCES[::-1]]))
    other.stdin.close()
    statistics = Spice().statistics(CAPTIONS, REFERENCES)
    assert other.stdout is not None
    of_other = json.loads(other.stdout.read())
    assert other.wait() == 0

    assert statistics[:, 0] == pytest.approx(F_SCORES)
    assert of_other == statistics[::-1].tolist()
    assert Spice().score(statistics.sum(0)) == pytest.approx([np.mean(F_SCORES)])
    assert Spice().score(statistics) == pytest.approx(np.array(F_SCORES)[:, None])

    # All parses were kept: the same texts need no models, in any arrangement, while others do.
    (cache / CORENLP_FILES[1]).unlink()
    zipfile.ZipFile(cache / CORENLP_FILES[1], "w").close()
    again = Spice().statistics([*CAPTIONS, "a dog"], [*REFERENCES, ["a dog", "two red cars"]])
    assert again[:-1].tolist() == statistics.tolist()
    assert again[-1, 0] == pytest.approx(0.5)  # dog of dog, car, car-red
    with pytest.raises(MetricUnavailable, match="englishPCFG"):
        Spice().statistics(["a bird"], [["a dog"]])
    assert capfd.readouterr() == ("", "")


def test_without_the_models_a_line_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFIXCAP_CACHE", str(tmp_path))
    with pytest.raises(MetricUnavailable, match=r"^SPICE needs .*: run `prefixcap setup-spice`.*$"):
        Spice().statistics(["a dog"], [["a dog"]])
    assert not any(tmp_path.iterdir())


def test_without_java_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("PATH", str(cache))
    with pytest.raises(MetricUnavailable, match=r"^SPICE needs Java .*install a JRE.*$"):
        Spice().statistics(["a dog"], [["a dog"]])


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (r"printf 'Exception in thread: no memory\n\tat somewhere\n' >&2; exit 1", "Exception in thread: no memory"),
        ("echo no JSON", "no JSON"),
        ("exit 5", "exit status 5"),
    ],
)
def test_a_java_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, cache: Path, script: str, reason: str) -> None:
    java = cache / "java"
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{cache}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(MetricUnavailable) as error:
        Spice().statistics(["a dog"], [["a dog"]])
    assert f"failed ({reason})" in str(error.value) and "\n" not in str(error.value)


def test_parses_are_kept_part_by_part(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """With a program in Java's place that parses nothing, and that fails at the third part of the images."""
    java = cache / "java"
    java.write_text(f"""#!{sys.executable}
import json, sys
given = json.load(sys.stdin)
texts = {{text for image in given["images"] for text in image}}
assert "5" not in texts, "here it ends"
scores = [int(image[0]) for image in given["images"]]
with open("{cache}/runs", "a") as runs:
    print(len(scores), file=runs)
print(json.dumps({{"scores": scores, "parses": {{text: [[text]] for text in texts - set(given["parses"])}}}}))
""")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(cache))
    monkeypatch.setattr("prefixcap.metrics.spice._IMAGES_AT_ONCE", 4)
    monkeypatch.setattr("prefixcap.metrics.spice._NEW_IMAGES_AT_ONCE", 2)
    captions = list("012345")
    assert Spice().statistics(captions[:3], [["x"]] * 3)[:, 0].tolist() == [0, 1, 2]
    with pytest.raises(MetricUnavailable, match="here it ends"):
        Spice().statistics(captions, [["x"]] * 6)
    (file,) = cache.glob("parses-*.sqlite")
    with closing(sqlite3.connect(file)) as database:
        rows = database.execute("SELECT * FROM parses ORDER BY text").fetchall()
    assert rows == [(text, f'[["{text}"]]') for text in ("0", "1", "2", "3", "x")]
    assert Spice().statistics(captions[:4], [["x"]] * 4)[:, 0].tolist() == [0, 1, 2, 3]
    assert (cache / "runs").read_text().split() == ["2", "1", "2", "2", "4"]  # together where nothing is new


def test_parses_of_another_parser_are_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = set()
    for code, release in (("a", "4.0"), ("b", "4.0"), ("b", "4.1")):
        (tmp_path / "SpiceScores.class").write_text(code)
        monkeypatch.setattr(prefixcap.metrics.spice, "ASSETS", tmp_path)
        monkeypatch.setattr(prefixcap.metrics.spice, "CORENLP_FILES", (f"corenlp-{release}.jar",))
        names.add(prefixcap.metrics.spice._parser.__wrapped__())
    assert len(names) == 3


def test_a_damaged_cache_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MetricUnavailable, match="needs Java"):
        Spice().statistics(["a dog"], [["a dog"]])
    (file,) = cache.glob("parses-*.sqlite")
    file.write_bytes(b"no database" * 100)
    with pytest.raises(MetricUnavailable, match=r"^SPICE cannot keep its parses in .*not a database.*$"):
        Spice().statistics(["a dog"], [["a dog"]])
