"""Read training checkpoints without running pickled code."""

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from prefixcap.checkpoints.descriptions import require_description
from prefixcap.checkpoints.paths import file_with_weights, require_file
from prefixcap.errors import InputError
from prefixcap.utils.validation import validate
from prefixcap.weights import REMEDY, open_weights, require_tensors


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training checkpoint, onto the CPU.

    Raises:
        InputError: there is no such file, or it is not a checkpoint of a captioner.
    """
    path = file_with_weights(path)
    return require_checkpoint(read_file(path), path)


class TrainingState(BaseModel):
    """The state of training in a checkpoint, with which Lightning continues."""

    model_config = ConfigDict(strict=True, extra="allow")
    epoch: Annotated[int, Field(ge=0)]
    global_step: Annotated[int, Field(ge=0)]
    state_dict: dict[str, Any] = {}  # DeepSpeed uses another name
    callbacks: dict[str, dict[str, Any]] = {}
    loops: dict[str, dict[str, Any]] = {}
    optimizer_states: list[dict[str, Any]] = []
    lr_schedulers: list[dict[str, Any]] = []


def read_training(path: Path) -> dict[str, Any]:
    """Read a checkpoint with which training can continue, onto the CPU.

    Raises:
        InputError: there is no such file, or it has no state of training in Lightning's format.
    """
    path = file_with_weights(path)
    content = read_file(path)
    validate(TrainingState, content, path, "give a checkpoint that training wrote")
    training: dict[str, Any] = content
    return training


def read_file(path: Path, mapped: bool = False) -> Any:
    """Load what torch saved to a file, onto the CPU, without running pickled code.

    Args:
        path: of the file.
        mapped: memory-map tensors, if the format of the file allows it.

    Raises:
        InputError: there is no such file, or torch did not save it.
    """
    require_file(path)
    try:
        return open_weights(path, mapped)
    except Exception as error:  # torch raises many kinds for files that are truncated, not an archive, or hold code
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is not a checkpoint of prefixcap, or is damaged ({reason})") from error


def require_checkpoint(content: Any, path: Path) -> dict[str, Any]:
    """Check that the content of a file, from `read_file`, is a training checkpoint with a valid description and
    weights.

    Raises:
        InputError: it is not, or it is damaged; the message says where.
    """
    if isinstance(content, dict) and "shared_params" in content:
        content["state_dict"] = _weights_of_deepspeed(content, path)
    if not isinstance(content, dict) or "prefixcap" not in content or "state_dict" not in content:
        raise InputError(f"{path} is not a checkpoint of prefixcap: give one that train.py wrote")
    require_description(content["prefixcap"], path)
    require_tensors(content["state_dict"], path)
    return content


def _weights_of_deepspeed(content: dict[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """The weights in DeepSpeed's checkpoint. It keeps frozen weights that have two names under the second one."""
    weights = require_tensors(content.get("module"), path)
    first_name = validate(dict[str, str], content["shared_params"], f"{path}: shared_params", REMEDY)
    return {name: weights[name] for name in weights if first_name.get(name, name) in weights}


def captioner_state_dict(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The captioner's weights of a training checkpoint, for `load_checkpoint_state_dict`."""
    return {name.removeprefix("captioner."): tensor for name, tensor in checkpoint["state_dict"].items()}
