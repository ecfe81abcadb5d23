"""The Dockerfile: what it copies is there, and, where an engine runs, its image captions a photograph."""

import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_it_copies_all_that_the_package_is_built_from_and_knows_its_extras() -> None:
    copied = {
        name for names in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, flags=re.MULTILINE) for name in names.split()
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {
        *wheel["packages"],
        *wheel["force-include"],
        project["project"]["readme"],
        *project["project"]["license-files"],
    }
    assert copied == needed | {"pyproject.toml", "constraints.txt"}
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == copied
    extras = re.search(r"^ARG EXTRAS=(\S+)$", DOCKERFILE, flags=re.MULTILINE)
    assert extras and set(extras[1].split(",")) <= project["project"]["optional-dependencies"].keys()


def _engine() -> str | None:
    for name in ("docker", "podman"):
        if shutil.which(name) and not subprocess.run([name, "info"], capture_output=True).returncode:
            return name
    return None


@pytest.mark.slow
def test_its_image_captions_a_photograph() -> None:
    """It installs torch in an image, which takes minutes."""
    if (engine := _engine()) is None:
        pytest.skip("neither docker nor podman runs here")
    subprocess.run([engine, "build", "--build-arg", "EXTRAS=photos", "-t", "prefixcap-test", str(ROOT)], check=True)
    photographs = ROOT / "docs" / "photographs"
    words = [engine, "run", "--rm", "--network", "none", "-v", f"{photographs}:/work:ro", "prefixcap-test"]
    done = subprocess.run([*words, "caption", "chelsea.jpg"], capture_output=True, text=True)
    assert not done.returncode and re.search(r"chelsea\.jpg\W+\w+ \w+", done.stdout), done.stderr
    assert subprocess.run([*words, "doctor"], capture_output=True).returncode == 0
