"""Paths of captioners: a file, a folder, or a name on the model hub. No torch here: a wrong path is told at once."""

import re
from pathlib import Path

from prefixcap.errors import InputError

LANGUAGE_MODEL = "language_model"  # the folder of the language model, in a folder that `save_pretrained` wrote
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def is_hub_name(name: str | Path) -> bool:
    """Whether this may be a captioner's name on the model hub: OWNER/NAME, where no such file or folder is."""
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


def require_captioner(path: Path) -> Path:
    """The path of a captioner, as `prefixcap.load` takes it. Raises InputError if nothing is there."""
    return path if path.exists() or is_hub_name(path) else require_file(path)
