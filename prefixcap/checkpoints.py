"""Files that captioners are loaded from: checkpoints of training, exported folders, weights that ClipCap published."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from prefixcap.captioner import Captioner
from prefixcap.errors import InputError
from prefixcap.published import is_published, read_published
from prefixcap.sharing.pretrained import downloaded, is_hub_name


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
        captioner = Captioner.build(checkpoint["prefixcap"])
        captioner.load_own_weights(_weights(checkpoint), path)
        captioner.source = path
    return captioner.to(device).eval()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a training checkpoint holds, on the CPU, without running pickled code.

    Raises:
        InputError: there is no such file, or it is not a checkpoint of a captioner.
    """
    path = file_with_weights(path)
    return require_checkpoint(read_file(path), path)


def load_weights(captioner: Captioner, path: Path) -> None:
    """Let a captioner have the weights of a training checkpoint, without building its captioner beside.

    Raises:
        InputError: as `read_checkpoint`, or the captioners differ; a weight is named.
    """
    captioner.load_own_weights(_weights(read_checkpoint(path)), path)


def _weights(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("captioner."): tensor for name, tensor in checkpoint["state_dict"].items()}


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
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(path))
    except Exception as error:  # torch raises many kinds for files that are cut short, no archive, or hold code
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is not a checkpoint of prefixcap, or is damaged ({reason})") from error


def require_checkpoint(content: Any, path: Path) -> dict[str, Any]:
    """What `read_file` gave, if it is a training checkpoint. Raises InputError otherwise."""
    if isinstance(content, dict) and "shared_params" in content:  # DeepSpeed's; of frozen weights the second names stay
        weights, first_name = content["module"], content["shared_params"]
        content["state_dict"] = {name: weights[name] for name in weights if first_name.get(name, name) in weights}
    if not isinstance(content, dict) or "prefixcap" not in content or "state_dict" not in content:
        raise InputError(f"{path} is not a checkpoint of prefixcap: give one that train.py wrote")
    return content
