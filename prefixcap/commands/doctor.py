"""Report what is installed on this machine, what is missing, and what would be downloaded.

Status 1: something is broken that every command needs.
"""

import importlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from prefixcap import photos
from prefixcap.demo import ASSETS
from prefixcap.errors import InputError
from prefixcap.utils.files import user_cache

DEVELOPER_EXTRAS = ("dev", "docs")
# The models that the configurations name, with the size of their download in bytes.
CLIPS = {"ViT-B/32": 354e6, "ViT-L/14": 933e6, "RN50x4": 422e6}
LANGUAGE_MODELS = {"gpt2": 548e6, "gpt2-medium": 1520e6, "facebook/opt-1.3b": 2632e6}


@dataclass(frozen=True)
class Finding:
    """The state of one package, model or piece of hardware.

    Attributes:
        group: the heading that it is listed under.
        name: its name.
        state: "ok"; "missing", if some commands need it; "broken", if every command needs it.
        note: its version, size or place, or what to do.
    """

    group: str
    name: str
    state: Literal["ok", "missing", "broken"]
    note: str


EXAMPLES = """  prefixcap doctor

  prefixcap doctor --json"""


def main(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print the findings; exit with status 1 if one is "broken"."""
    findings = examine()
    print(json.dumps([vars(finding) for finding in findings], indent=2) if as_json else format_findings(findings))
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)


def examine() -> list[Finding]:
    """All findings, group by group."""
    return [*_packages(), *_machine(), *_java(), *_extras(), *_models()]


def format_findings(findings: list[Finding]) -> str:
    """Findings as a table, a line each below the heading of their group."""
    width = max(len(finding.name) for finding in findings)
    lines: list[str] = []
    group = ""
    for finding in findings:
        if finding.group != group:
            group = finding.group
            lines += ["", group]
        lines.append(f"  {finding.name:{width}}  {finding.state:7}  {finding.note}".rstrip())
    return "\n".join(lines[1:])


def _packages() -> Iterator[Finding]:
    group = "Packages"
    yield Finding(group, "python", "ok", platform.python_version())
    for name in ("prefixcap", "torch", "transformers", "lightning", "clip-anytorch"):
        module = "clip" if name == "clip-anytorch" else name
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # clip imports pkg_resources, which is deprecated
                importlib.import_module(module)
            yield Finding(group, name, "ok", importlib.metadata.version(name))
        except Exception as error:  # a package that does not fit the others raises anything
            reason = " ".join(str(error).split())[:200]
            yield Finding(group, name, "broken", f"{reason}: install prefixcap again")


def _machine() -> Iterator[Finding]:
    group = "Machine"
    try:
        import torch

        from prefixcap.utils.hardware import cpu_count, memory_bytes
    except ImportError:  # reported among the packages
        return
    yield Finding(group, "processors", "ok", f"{cpu_count()}, of which torch uses {torch.get_num_threads()}")
    yield Finding(group, "memory", "ok", _size(memory_bytes()))
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        yield Finding(group, f"cuda:{number}", "ok", f"{device.name}, {_size(device.total_memory)}")
    if not torch.cuda.is_available():
        yield Finding(group, "CUDA", "missing", "models run and are trained on the CPU")
    for name, folder in (
        ("current folder", Path.cwd()),
        ("prefixcap's cache", user_cache()),
        ("model hub's cache", _hub_cache()),
    ):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        yield Finding(group, f"disk, {name}", "ok", f"{_size(shutil.disk_usage(existing).free)} free in {folder}")


def _java() -> Iterator[Finding]:
    from prefixcap.metrics.spice_setup import is_set_up, spice_folder

    group = "METEOR and SPICE"
    version = _java_version()
    if version is None:
        yield Finding(group, "Java", "missing", "both need it: install a JRE, e.g. default-jre-headless")
    else:
        enough = "enough for both" if 8 <= version <= 21 else "enough for METEOR; SPICE needs 8 to 21"
        yield Finding(group, "Java", "ok", f"{version}, {enough}")
    if is_set_up():
        yield Finding(group, "SPICE", "ok", f"set up in {spice_folder()}")
    else:
        yield Finding(group, "SPICE", "missing", "run `prefixcap setup-spice` once: downloads 400 MB, keeps 17 MB")


def _java_version() -> int | None:
    """The major version of the Java on the PATH: 8, 11, 17, …; None: there is no working one."""
    try:
        done = subprocess.run(["java", "-version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = re.search(r'version "(?:1\.)?(\d+)', done.stderr + done.stdout)  # Java 8 calls itself 1.8
    return int(version[1]) if version else None


def _extras() -> Iterator[Finding]:
    try:
        requirements = importlib.metadata.requires("prefixcap") or []
    except importlib.metadata.PackageNotFoundError:  # reported among the packages
        return
    for requirement in requirements:
        optional = re.match(r"([\w.-]+).*extra == ['\"](\w+)['\"]", requirement)
        if optional is None or optional[2] in DEVELOPER_EXTRAS:
            continue
        package, extra = optional.groups()
        try:
            yield Finding("Optional packages", package, "ok", f"{importlib.metadata.version(package)} ({extra})")
        except importlib.metadata.PackageNotFoundError:
            yield Finding("Optional packages", package, "missing", f'pip install "prefixcap[{extra}]"')


def _models() -> Iterator[Finding]:
    group = "Models (missing ones are downloaded when they are first used)"
    if (ASSETS / "clip.pt").is_file() and (ASSETS / "language_model").is_dir():
        yield Finding(group, "demo", "ok", "the small world's CLIP and GPT-2, in the package")
    else:
        yield Finding(group, "demo", "broken", f"{ASSETS} lacks the small world's models: install prefixcap again")
    try:
        photos.require_captioner()
        yield Finding(group, photos.NAME, "ok", f"{photos.CARD}, the captioner of photographs, in the package")
    except InputError as error:
        yield Finding(group, photos.NAME, "broken", str(error))
    clips = Path("~/.cache/clip").expanduser()
    for name, size in CLIPS.items():
        file = clips / f"{name.replace('/', '-')}.pt"
        yield _model(group, f"clip:{name}", file.is_file(), size, clips)
    for name, size in LANGUAGE_MODELS.items():
        snapshots = (_hub_cache() / f"models--{name.replace('/', '--')}").glob("snapshots/*")
        weights = ("model.safetensors", "pytorch_model.bin")
        is_cached = any((snapshot / file).is_file() for snapshot in snapshots for file in weights)
        yield _model(group, name, is_cached, size, _hub_cache())


def _model(group: str, name: str, is_cached: bool, size: float, folder: Path) -> Finding:
    if is_cached:
        return Finding(group, name, "ok", f"in {folder}")
    return Finding(group, name, "missing", f"{_size(size)}, to {folder}")


def _hub_cache() -> Path:
    """Where transformers keeps its downloads."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def _size(bytes_: float) -> str:
    return f"{bytes_ / 1e9:,.1f} GB" if bytes_ >= 1e9 else f"{bytes_ / 1e6:,.0f} MB"
