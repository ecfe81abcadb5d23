"""Opens captioners: checkpoints, folders, published weights."""

from pathlib import Path
from typing import Any

import torch

from prefixcap.captioner.captioner import Captioner
from prefixcap.checkpoints import pretrained
from prefixcap.checkpoints.clipcap_weights import is_clipcap, read_clipcap
from prefixcap.checkpoints.files import captioner_state_dict, read_file, require_checkpoint
from prefixcap.errors import InputError
from prefixcap.utils.options import Dtype, Quantization, check_value


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    tokenizer: str | None = None,
    normalize_embeddings: bool | None = None,
    revision: str | None = None,
    dtype: Dtype | None = None,
    quantization: Quantization | None = None,
) -> Captioner:
    """Load a captioner, in eval mode.

    Args:
        path: "photos", the captioner of photographs that comes with the package; a checkpoint (`*.ckpt`) of training, a
            folder that `save_pretrained` wrote, or weights (`*.pt`) that the authors of ClipCap published; or a name on
            the model hub, e.g. "someone/captioner" or "someone/captioner@v1". Pickled code is never run. A folder named
            photos is "./photos".
        device: where to put it.
        tokenizer: only for ClipCap's weights: GPT-2's, as a folder or by its name on the model hub; None: "gpt2".
        normalize_embeddings: only for ClipCap's weights: whether to scale embeddings to unit length; None: as their
            authors do, for the transformer but not for the MLP.
        revision: only for a name on the model hub: a branch, tag or commit; None: that behind the @ of the name, or the
            latest.
        dtype: of the language model's weights, "bfloat16" or "float16" for half the memory; None: as saved.
        quantization: of its linear layers, "8bit" or "4bit", by bitsandbytes; None: as saved.

    Raises:
        InputError: there is no such file, it holds no captioner, its language model or tokenizer cannot be found, its
            tuned language model is to be quantized and is in no folder, it is not ClipCap's and takes no such argument,
            or "photos" may mean a captioner in the working folder, too.

    Examples:
        >>> captioner = load("best.ckpt")  # also available as `prefixcap.load`
        >>> len(captioner.caption(["photo.jpg", "another.png"], decode="beam"))
        2
    """
    path = pretrained.locate(path, revision)
    kinds: dict[str, tuple[Any, Any]] = {"dtype": (dtype, Dtype), "quantization": (quantization, Quantization)}
    precision = {name: check_value(name, value, kind) for name, (value, kind) in kinds.items() if value is not None}
    content: Any = None if path.is_dir() else read_file(path)
    if is_clipcap(content):
        if precision:
            raise InputError(f"{path} is ClipCap's, which has one {min(precision)}: save_pretrained it, and load that")
        parts = read_clipcap(content, path, tokenizer or "gpt2", normalize_embeddings)
        captioner = Captioner(parts.language_model, parts.encoder, parts.mapper, parts.normalize_embeddings)
        captioner.load_checkpoint_state_dict(parts.weights, path)
    elif tokenizer is not None or normalize_embeddings is not None:
        given = "normalize_embeddings" if tokenizer is None else "tokenizer"
        raise InputError(f"{given} is for the files that ClipCap published, and {path} is none: leave it out")
    elif path.is_dir():
        captioner = Captioner.from_pretrained(path, **precision)
    else:
        checkpoint = require_checkpoint(content, path)
        description, weights = checkpoint["prefixcap"], captioner_state_dict(checkpoint)
        if quantization and description["language_model"]["tuning"] == "full":
            raise InputError(
                f"{path} holds the weights of a tuned language model, which are quantized from a folder only: "
                "save_pretrained writes one"
            )
        description["language_model"] |= precision
        captioner = Captioner.build(description, weights=weights, source=path)
        captioner.load_checkpoint_state_dict(weights, path)
        captioner.source = path
    return captioner.to(device).eval()
