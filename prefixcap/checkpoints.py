"""Files that captioners are loaded from: checkpoints of training, exported folders, weights that ClipCap published."""

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from prefixcap.captioner import Captioner
from prefixcap.descriptions import REMEDY, require_description
from prefixcap.errors import InputError
from prefixcap.published import is_published, read_published
from prefixcap.sharing.pretrained import downloaded, is_hub_name
from prefixcap.validation import validate
from prefixcap.weights import open_weights, require_tensors


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    tokenizer: str | None = None,
    normalize_embeddings: bool | None = None,
) -> Captioner:
    """Load a captioner, in eval mode, ready to caption.

    Args:
        path: a checkpoint (`….ckpt`) that training wrote, a folder that `save_pretrained` wrote, or weights (`….pt`)
            that the authors of ClipCap published; or a captioner's name on the model hub, e.g. "someone/captioner".
            Pickled code in a file is never run.
        device: where to put it.
        tokenizer: only for published weights: GPT-2's, as a folder or by its name on the model hub; None: "gpt2".
        normalize_embeddings: only for published weights: whether to scale embeddings to length one; None: as their
            authors do, yes for the transformer and no for the MLP.

    Raises:
        InputError: there is no such file, it is no captioner's, its language model or tokenizer cannot be found, or it
            does not take an argument.

    Examples:
        >>> captioner = load("best.ckpt")  # it is `prefixcap.load`, too
        >>> len(captioner.caption(["photo.jpg", "another.png"], decode="beam"))
        2
    """
    path = downloaded(str(path)) if is_hub_name(path) else file_with_weights(Path(path))
    content: Any = None if path.is_dir() else read_file(path)
    if is_published(content):
        parts = read_published(content, path, tokenizer or "gpt2", normalize_embeddings)
        captioner = Captioner(parts.language_model, parts.encoder, parts.mapper, parts.normalize_embeddings)
        captioner.load_own_weights(parts.weights, path)
    elif tokenizer is not None or normalize_embeddings is not None:
        given = "normalize_embeddings" if tokenizer is None else "tokenizer"
        raise InputError(f"{path} says by itself what it needs, as no file that ClipCap published: leave out {given}")
    elif path.is_dir():
        captioner = Captioner.from_pretrained(path)
    else:
        checkpoint = require_checkpoint(content, path)
        weights = own_weights(checkpoint)
        captioner = Captioner.build(checkpoint["prefixcap"], weights=weights, source=path)
        captioner.load_own_weights(weights, path)
        captioner.source = path
    return captioner.to(device).eval()


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


def load_weights(captioner: Captioner, path: Path) -> None:
    """Let a captioner have the weights of a training checkpoint, without building its captioner beside.

    Raises:
        InputError: as `read_checkpoint`, or the captioners differ; a weight is named.
    """
    captioner.load_own_weights(own_weights(read_checkpoint(path)), path)


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


def own_weights(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The captioner's weights in a training checkpoint, by the names that `Captioner.load_own_weights` knows."""
    return {name.removeprefix("captioner."): tensor for name, tensor in checkpoint["state_dict"].items()}
