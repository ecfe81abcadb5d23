"""Captioners by path or name: a file, a folder, "photos", a name on the hub. No torch: a wrong path is told at once."""

import re
from pathlib import Path

from prefixcap import photos
from prefixcap.errors import InputError

CONFIG = "config.json"  # in a folder that `save_pretrained` wrote
LANGUAGE_MODEL = "language_model"  # the folder of the language model, in a folder that `save_pretrained` wrote
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")


def is_hub_name(name: str | Path) -> bool:
    """Whether this may be a captioner's name on the model hub, OWNER/NAME or OWNER/NAME@REVISION: no such file or
    folder is here."""
    return (
        HUB_NAME.fullmatch(str(name)) is not None
        and not Path(name).exists()
        and Path(name).suffix not in (".ckpt", ".pt")
    )


def file_with_weights(path: Path) -> Path:
    """The file with the weights of a checkpoint: the checkpoint itself, or a file in DeepSpeed's folder."""
    deepspeed_file = path / "checkpoint" / "mp_rank_00_model_states.pt"
    return deepspeed_file if deepspeed_file.is_file() else path


def require_file(path: Path) -> Path:
    """The path of a checkpoint. Raises InputError if there is no such file."""
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}: give a .ckpt file or a folder that save_pretrained wrote")
    return path


def require_captioner(name: str | Path) -> str | Path:
    """The path or name of a captioner, as `prefixcap.load` takes it. Raises InputError if nothing is there."""
    if is_bundled(name):
        photos.require_captioner()
    elif not Path(name).exists() and not is_hub_name(name):
        require_file(Path(name))
    return name


def is_bundled(name: str | Path) -> bool:
    """Whether this text is the name of the captioner that comes with the package. A `Path`, or "./photos", never is.

    Raises:
        InputError: it is, but there is a captioner at the path of that name, too.
    """
    if name != photos.NAME:  # as it is for any Path
        return False
    path = Path(name)
    if path.is_file() or (path / CONFIG).is_file() or file_with_weights(path) != path:
        raise InputError(
            f"'{name}' is the name of the captioner that comes with the package, and there is one in this folder, too: "
            f"give ./{name} for that, or {photos.CAPTIONER}"
        )
    return True


def local_captioner(name: str | Path) -> Path:
    """The file or folder of a captioner that is on this machine. Raises InputError as `is_bundled`, or if the captioner
    that comes with the package is damaged."""
    return photos.require_captioner() if is_bundled(name) else file_with_weights(Path(name))
