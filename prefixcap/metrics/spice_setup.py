"""What SPICE needs beyond pycocoevalcap: the part of Stanford CoreNLP 3.6.0 that it opens, in the user's cache."""

import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
import zlib
from pathlib import Path

from filelock import FileLock

from prefixcap.errors import InputError
from prefixcap.utils.files import atomic_write, require_user_cache, user_cache

_RELEASE = "stanford-corenlp-full-2015-12-09"
_DOWNLOAD = f"https://nlp.stanford.edu/software/{_RELEASE}.zip"
_CODE, _MODELS = "stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"
# Of the 378 MB of models SPICE opens the parser's grammar and the word lists of a class that resolves pronouns.
_ENTRIES = (
    "lexparser/englishPCFG.ser.gz",
    *(f"dcoref/{name}.unigrams.txt" for name in ("animate", "inanimate")),
    *(f"dcoref/{name}" for name in ("demonyms.txt", "gender.map.ser.gz", "state-abbreviations.txt")),
    *(f"dcoref/{name}" for name in ("countries", "statesandprovinces")),
)

CORENLP_FILES = (_CODE, "stanford-corenlp-3.6.0-models-of-spice.jar")
"""The jars that `setup_spice` puts into `spice_folder`: 17 MB."""


def spice_folder() -> Path:
    """Where SPICE keeps its files."""
    return user_cache() / "spice"


def is_set_up() -> bool:
    """Whether `spice_folder` holds what SPICE needs; False for a folder that cannot be read."""
    try:
        return all((spice_folder() / file).is_file() for file in CORENLP_FILES)
    except OSError:
        return False


def setup_spice(source: Path | None = None) -> None:
    """Get the files of CoreNLP that SPICE needs, each written atomically. Does nothing if they are there.

    Args:
        source: a folder that holds the two jars of CoreNLP 3.6.0, or the release's folder with them. Without one they
            come through Maven, or, where that is not installed, from the Stanford NLP group.

    Raises:
        InputError: they are missing, cannot be fetched, read or written, or there is no folder for them.
    """
    require_user_cache()
    folder = spice_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".setup.lock"):  # a second process waits, and finds what the first one got
            if is_set_up():
                return
            if source is not None:
                _take(source, folder)
                return
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                if shutil.which("mvn") is not None:
                    _fetch_by_maven(Path(temporary))
                else:
                    _download(Path(temporary))
                _take(Path(temporary), folder)
    except OSError as error:
        raise InputError(
            f"cannot set SPICE up in {folder}: {error}; mend that and run the same command again"
        ) from error


def _take(source: Path, folder: Path) -> None:
    """Copy what SPICE needs out of a folder with CoreNLP's jars."""
    code, models = (_find(source, name) for name in (_CODE, _MODELS))
    if not zipfile.is_zipfile(code):
        raise InputError(f"{code} is not a complete jar; get it again")
    try:
        with (
            atomic_write(folder / CORENLP_FILES[1]) as copy,
            zipfile.ZipFile(models) as every_model,
            zipfile.ZipFile(copy, "w") as spice_models,
        ):
            for entry in _ENTRIES:
                path = f"edu/stanford/nlp/models/{entry}"
                spice_models.writestr(path, every_model.read(path), zipfile.ZIP_DEFLATED)
    except (zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise InputError(f"{models} is not a complete jar of CoreNLP 3.6.0's models ({error}); get it again") from error
    with atomic_write(folder / _CODE) as copy:
        shutil.copyfile(code, copy)


def _find(source: Path, name: str) -> Path:
    for path in (source / name, source / _RELEASE / name):
        if path.is_file():
            return path
    raise InputError(f"there is no {name} in {source}; name the folder that holds it, or leave --from out to fetch it")


def _fetch_by_maven(folder: Path) -> None:
    print("fetching Stanford CoreNLP 3.6.0 through Maven (385 MB, kept in Maven's repository, too)", file=sys.stderr)
    for artifact in ("edu.stanford.nlp:stanford-corenlp:3.6.0", "edu.stanford.nlp:stanford-corenlp:3.6.0:jar:models"):
        command = ["mvn", "-q", "-B", "dependency:copy", f"-Dartifact={artifact}", f"-DoutputDirectory={folder}"]
        run = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if run.returncode != 0:
            lines = (run.stdout + run.stderr).splitlines()
            reason = next((line for line in lines if "ERROR" in line), f"exit status {run.returncode}")
            raise InputError(
                f"Maven cannot fetch {artifact} ({reason.strip()}); mend that and run the same command again, or "
                f"download {_DOWNLOAD}, unpack it and name its folder by --from"
            )


def _download(folder: Path) -> None:
    print(f"fetching {_DOWNLOAD} (536 MB), as Maven is not installed", file=sys.stderr)
    file = folder / "corenlp.zip"
    try:
        with urllib.request.urlopen(_DOWNLOAD, timeout=60) as source, file.open("wb") as target:
            shutil.copyfileobj(source, target, 2**20)
        with zipfile.ZipFile(file) as archive:
            for name in (_CODE, _MODELS):
                archive.extract(f"{_RELEASE}/{name}", folder)
    except (OSError, zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise InputError(
            f"cannot fetch {_DOWNLOAD} ({error}); run the same command again, install Maven, or get the file "
            "elsewhere, unpack it and name its folder by --from"
        ) from error
