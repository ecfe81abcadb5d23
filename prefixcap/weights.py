"""Read weights from untrusted files: no pickled code is run, and no model is built that is larger than the weights."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prefixcap.errors import InputError

Shapes = Mapping[str, tuple[int, ...]]
REMEDY = "it is damaged, or of another version of prefixcap"


def open_weights(path: Path, mapped: bool = False) -> Any:
    """Load what torch saved to a file, onto the CPU, without running pickled code.

    Args:
        path: of the file.
        mapped: memory-map tensors, if the format of the file allows it.

    Raises:
        Exception: whatever torch raises for files that are truncated, not an archive, or hold code.
    """
    is_archive = zipfile.is_zipfile(path)
    if is_archive:
        _require_uncompressed(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and is_archive)


def _require_uncompressed(path: Path) -> None:
    """Refuse an archive that claims to hold more than its size: it could fill the memory."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if compressed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("it is a compressed archive, which torch never saves")


def require_tensors(weights: object, source: object) -> dict[str, Tensor]:
    """Check that an object is a state dict: names and dense tensors whose storage is as large as their shape says.

    Raises:
        InputError: it is not.
    """
    if not isinstance(weights, dict):
        raise InputError(f"{source}: its weights are a {type(weights).__name__}, not a state dict")
    for name, weight in weights.items():
        if not isinstance(name, str):
            raise InputError(f"{source}: {name!r:.80} among its weights is not a name")
        if type(weight) not in (Tensor, nn.Parameter) or not _is_dense(weight):
            raise InputError(f"{source}: weight '{name:.200}' is not a dense tensor of numbers")
    return weights


def _is_dense(weight: Tensor) -> bool:
    if weight.layout != torch.strided or weight.is_quantized or weight.device.type != "cpu":
        return False
    # Strides of zero may repeat one number: the shape would then promise more memory than the file has.
    return weight.numel() * weight.element_size() <= weight.untyped_storage().nbytes()


def shapes_of(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each weight."""
    return {name: tuple(weight.shape) for name, weight in weights.items()}


def require_shapes(actual: Shapes, expected: Shapes, source: object) -> None:
    """Raise InputError, naming the file and the weight, if one is missing, unknown or of another shape."""
    for problem, names in (
        ("lacks", expected.keys() - actual.keys()),
        ("has the unknown", actual.keys() - expected.keys()),
    ):
        if names:
            raise misfit(source, problem, min(names))
    for name, shape in expected.items():
        if actual[name] != shape:
            raise InputError(f"{source}: weight '{name}' is {actual[name]}, not {shape}")


def require_numbers(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], source: object) -> None:
    """Raise InputError, naming the file and the weight, if one has another kind of dtype, or is NaN or infinite.

    Args:
        weights: from a file.
        own: the parameters and buffers that they are for, by the same names; buffers may be infinite.
        source: the file.
    """
    for name, weight in weights.items():
        if weight.is_floating_point() != own[name].is_floating_point() or weight.is_complex():
            raise InputError(f"{source}: weight '{name}' is of {weight.dtype}, not {own[name].dtype}")
        if isinstance(own[name], nn.Parameter) and not weight.isfinite().all():
            raise InputError(f"{source}: weight '{name}' is NaN or infinite: take an earlier checkpoint")


def rounded(weights: Mapping[str, Tensor], dtype: str | None) -> dict[str, Tensor]:
    """Weights in another dtype, e.g. "float16"; None: as they are. Integers stay.

    Raises:
        InputError: a weight is finite, and too large for the dtype.
    """
    if dtype is None:
        return dict(weights)
    narrow = {
        name: weight.to(getattr(torch, dtype)) if weight.is_floating_point() else weight
        for name, weight in weights.items()
    }
    for name, weight in narrow.items():
        if not torch.equal(weight.isfinite(), weights[name].isfinite()):
            raise InputError(f"weight '{name}' is too large for {dtype}: save it as it is")
    return narrow


def misfit(source: object, problem: str, name: str) -> InputError:
    """The error for a weight that a file lacks, or should not have."""
    return InputError(f"{source} {problem} weight '{name}': it is incomplete, or of another model")


def require_layers(config: Mapping[str, Any], weights: Shapes, source: object) -> None:
    """Refuse the configuration of a language model with more layers or experts than there are weights.

    Building each of them takes time, even without allocating memory.
    """
    most = max(64, len(weights))
    for name, value in config.items():
        if isinstance(value, dict):
            require_layers(value, weights, source)
        elif re.search(r"(layers?|experts|labels)$", name) and isinstance(value, int) and value > most:
            raise InputError(f"{source}: {name} is {value:,}, but there are {len(weights)} weights; {REMEDY}")
