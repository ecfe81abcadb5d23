"""Checkpoints that training wrote, read without running pickled code."""

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from prefixcap.checkpoints.descriptions import require_description
from prefixcap.errors import InputError
from prefixcap.model import PrefixLM
from prefixcap.utils.validation import validate
from prefixcap.weights import REMEDY, open_weights, require_tensors


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a training checkpoint holds, on the CPU, without running pickled code.

    Raises:
        InputError: there is no such file, or it is not a checkpoint of a captioner.
    """
    path = file_with_weights(path)
    return require_checkpoint(read_file(path), path)


class TrainingState(BaseModel):
    """What a checkpoint keeps of training, for Lightning to go on from."""

    model_config = ConfigDict(strict=True, extra="allow")
    epoch: Annotated[int, Field(ge=0)]
    global_step: Annotated[int, Field(ge=0)]
    state_dict: dict[str, Any] = {}  # with DeepSpeed it has another name
    callbacks: dict[str, dict[str, Any]] = {}
    loops: dict[str, dict[str, Any]] = {}
    optimizer_states: list[dict[str, Any]] = []
    lr_schedulers: list[dict[str, Any]] = []


def read_training(path: Path) -> dict[str, Any]:
    """What a checkpoint holds that training can go on from, on the CPU, without running pickled code.

    Raises:
        InputError: there is no such file, or it keeps no training, or not laid out as Lightning does.
    """
    path = file_with_weights(path)
    content = read_file(path)
    validate(TrainingState, content, path, "give a checkpoint that training wrote")
    training: dict[str, Any] = content
    return training


def load_weights(captioner: PrefixLM, path: Path) -> None:
    """Let a captioner have the weights of a training checkpoint, without building its captioner beside.

    Raises:
        InputError: as `read_checkpoint`, or the captioners differ; a weight is named.
    """
    captioner.load_checkpoint_state_dict(captioner_state_dict(read_checkpoint(path)), path)


def file_with_weights(path: Path) -> Path:
    """A checkpoint is a file, or DeepSpeed's folder, where all but the optimizer's state is in this one."""
    of_deepspeed = path / "checkpoint" / "mp_rank_00_model_states.pt"
    return of_deepspeed if of_deepspeed.is_file() else path


def read_file(path: Path, mapped: bool = False) -> Any:
    """What torch saved to a file, on the CPU, without running pickled code.

    Args:
        path: of the file.
        mapped: leave tensors on the disk until they are looked at, where the file's format can.

    Raises:
        InputError: there is no such file, or it is none of torch's.
    """
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}: give a .ckpt file or a folder that save_pretrained wrote")
    try:
        return open_weights(path, mapped)
    except Exception as error:  # torch raises many kinds for files that are cut short, no archive, or hold code
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is not a checkpoint of prefixcap, or is damaged ({reason})") from error


def require_checkpoint(content: Any, path: Path) -> dict[str, Any]:
    """What `read_file` gave, if it is a training checkpoint, its description and its weights held to their layout.

    Raises:
        InputError: it is none, or is damaged; the place is named.
    """
    if isinstance(content, dict) and "shared_params" in content:
        content["state_dict"] = _weights_of_deepspeed(content, path)
    if not isinstance(content, dict) or "prefixcap" not in content or "state_dict" not in content:
        raise InputError(f"{path} is not a checkpoint of prefixcap: give one that train.py wrote")
    require_description(content["prefixcap"], path)
    require_tensors(content["state_dict"], path)
    return content


def _weights_of_deepspeed(content: dict[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """Its weights: of frozen ones it leaves out the first names, and the second names stay."""
    weights = require_tensors(content.get("module"), path)
    first_name = validate(dict[str, str], content["shared_params"], f"{path}: shared_params", REMEDY)
    return {name: weights[name] for name in weights if first_name.get(name, name) in weights}


def captioner_state_dict(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The captioner's weights in a training checkpoint, for `load_checkpoint_state_dict`."""
    return {name.removeprefix("captioner."): tensor for name, tensor in checkpoint["state_dict"].items()}
