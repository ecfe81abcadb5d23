import os
import sys
import zipfile
from pathlib import Path

import pytest

from prefixcap.commands import main
from prefixcap.metrics import spice_setup
from prefixcap.metrics.spice_setup import CORENLP_FILES

CODE, MODELS = "stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"
ENTRIES = {
    f"edu/stanford/nlp/models/{name}": f"content of {name}"
    for name in (
        "lexparser/englishPCFG.ser.gz",
        "dcoref/animate.unigrams.txt",
        "dcoref/countries",
        "dcoref/demonyms.txt",
        "dcoref/gender.map.ser.gz",
        "dcoref/inanimate.unigrams.txt",
        "dcoref/state-abbreviations.txt",
        "dcoref/statesandprovinces",
    )
}


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder that is filled; nothing is found on PATH."""
    monkeypatch.setenv("PREFIXCAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "cache" / "spice"


@pytest.fixture
def jars(tmp_path: Path) -> Path:
    """A folder with what stands for CoreNLP's jars; the models hold more than SPICE needs."""
    folder = tmp_path / "jars"
    folder.mkdir()
    with zipfile.ZipFile(folder / CODE, "w") as jar:
        jar.writestr("A.class", "code")
    with zipfile.ZipFile(folder / MODELS, "w") as jar:
        for name, content in {**ENTRIES, "edu/stanford/nlp/models/ner/large": "x" * 1000}.items():
            jar.writestr(name, content)
    return folder


def setup_spice(monkeypatch: pytest.MonkeyPatch, *options: object) -> None:
    monkeypatch.setattr(sys, "argv", ["prefixcap", "setup-spice", *map(str, options)])
    main()


def check_is_complete(cache: Path, jars: Path) -> None:
    assert sorted(path.name for path in cache.iterdir()) == sorted([".setup.lock", *CORENLP_FILES])
    assert (cache / CORENLP_FILES[0]).read_bytes() == (jars / CODE).read_bytes()
    with zipfile.ZipFile(cache / CORENLP_FILES[1]) as jar:
        assert {name: jar.read(name).decode() for name in jar.namelist()} == ENTRIES


def check_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Path, *options: object
) -> str:
    """The last line printed; the others are what is being done. Nothing half is left behind."""
    with pytest.raises(SystemExit) as stopped:
        setup_spice(monkeypatch, *options)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: ") for line in printed] == [False] * (len(printed) - 1) + [True]
    assert [path.name for path in cache.iterdir()] == [".setup.lock"]
    return printed[-1]


def fake_maven(tmp_path: Path, script: str) -> None:
    maven = tmp_path / "bin" / "mvn"
    maven.parent.mkdir()
    maven.write_text(f"#!{sys.executable}\nimport shutil, sys\n{script}\n")
    maven.chmod(0o755)


@pytest.mark.parametrize("inside", ["", "stanford-corenlp-full-2015-12-09"])
def test_from_a_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Path, jars: Path, inside: str
) -> None:
    if inside:
        moved = jars.rename(jars.with_name(inside))
        setup_spice(monkeypatch, "--from", moved.parent)
    else:
        moved = jars
        setup_spice(monkeypatch, "--from", jars)
    check_is_complete(cache, moved)
    assert capsys.readouterr() == (f"SPICE is set up in {cache}\n", "")
    setup_spice(monkeypatch, "--from", "nowhere")  # does nothing: all is there
    setup_spice(monkeypatch)


def test_through_maven(monkeypatch: pytest.MonkeyPatch, cache: Path, jars: Path, tmp_path: Path) -> None:
    fake_maven(
        tmp_path,
        f"""
given = dict(word.split("=", 1) for word in sys.argv if "=" in word)
models = {{"edu.stanford.nlp:stanford-corenlp:3.6.0": "{CODE}",
    "edu.stanford.nlp:stanford-corenlp:3.6.0:jar:models": "{MODELS}"}}
shutil.copy("{jars}/" + models[given["-Dartifact"]], given["-DoutputDirectory"])
assert "dependency:copy" in sys.argv""",
    )
    setup_spice(monkeypatch)
    check_is_complete(cache, jars)


def test_a_failure_of_maven_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Path, tmp_path: Path
) -> None:
    fake_maven(tmp_path, "print('a line'); print('[ERROR] no such host'); print('[ERROR] more'); sys.exit(1)")
    message = check_fails(monkeypatch, capsys, cache)
    assert "stanford-corenlp:3.6.0 ([ERROR] no such host)" in message and "--from" in message


def test_from_stanford_without_maven(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Path, jars: Path, tmp_path: Path
) -> None:
    release = tmp_path / "release.zip"
    monkeypatch.setattr(spice_setup, "_DOWNLOAD", release.as_uri())
    assert "cannot fetch file:" in check_fails(monkeypatch, capsys, cache)
    release.write_bytes(b"half a file")
    assert "not a zip file" in check_fails(monkeypatch, capsys, cache)
    with zipfile.ZipFile(release, "w") as archive:
        for name in (CODE, MODELS):
            archive.write(jars / name, f"stanford-corenlp-full-2015-12-09/{name}")
    setup_spice(monkeypatch)
    check_is_complete(cache, jars)


def test_what_is_wrong_with_a_folder_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Path, jars: Path
) -> None:
    empty = jars / "empty"
    empty.mkdir()
    assert f"there is no {CODE} in {empty}" in check_fails(monkeypatch, capsys, cache, "--from", empty)
    whole = (jars / MODELS).read_bytes()
    (jars / MODELS).write_bytes(whole[:-100])
    assert f"{jars / MODELS} is not a complete jar" in check_fails(monkeypatch, capsys, cache, "--from", jars)
    with zipfile.ZipFile(jars / MODELS, "w") as jar:
        jar.writestr("other", "models")
    assert "englishPCFG" in check_fails(monkeypatch, capsys, cache, "--from", jars)
    (jars / MODELS).write_bytes(whole)
    (jars / CODE).write_bytes(b"half")
    assert f"{jars / CODE} is not a complete jar" in check_fails(monkeypatch, capsys, cache, "--from", jars)


def test_a_folder_that_cannot_be_made_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Path, jars: Path
) -> None:
    cache.parent.write_text(f"a file where {os.fspath(cache.parent)} should be a folder")
    with pytest.raises(SystemExit):
        setup_spice(monkeypatch, "--from", jars)
    assert capsys.readouterr().err.startswith(f"error: cannot set SPICE up in {cache}: ")
