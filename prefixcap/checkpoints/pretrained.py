"""Captioners in folders of safetensors and JSON, and on the model hub."""

import json
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from prefixcap import renamed
from prefixcap.checkpoints.descriptions import require_description
from prefixcap.checkpoints.model_card import model_card
from prefixcap.checkpoints.paths import CONFIG, LANGUAGE_MODEL, is_hub_name, local_captioner
from prefixcap.errors import InputError
from prefixcap.language.files import TEXTS
from prefixcap.language.loading import load_saved_model
from prefixcap.language.model import LanguageModel
from prefixcap.model import PrefixLM
from prefixcap.utils.files import atomic_write, atomic_write_folder, atomic_write_text, read_json, read_text
from prefixcap.utils.hub import download, require_repository, upload
from prefixcap.utils.options import Dtype
from prefixcap.weights import REMEDY, rounded

__getattr__ = renamed.attributes(__name__)

MAPPER, CARD = "mapper.safetensors", "README.md"
WITHIN = f"./{LANGUAGE_MODEL}"  # name of a frozen language model that is only in this folder


def save(
    captioner: PrefixLM, folder: Path, license: str = "unknown", name: str | None = None, dtype: Dtype | None = None
) -> None:
    """Write a captioner: `config.json`, `mapper.safetensors`, a model card, and its language model in
    `language_model/`, with adapters merged, so that transformers can load it. A frozen language model is only named,
    unless its name is a folder.

    The model card, `README.md`, describes the run whose checkpoint the captioner was loaded from, with the scores in
    the run's `eval/`. A card in the folder, or where the captioner was loaded from, is kept.

    Args:
        captioner: to write.
        folder: created if necessary.
        license: of the weights, by its name on the hub, e.g. "mit"; for the card.
        name: of the captioner, for the card; None: the folder's name.
        dtype: of the weights in the files, "float16" for half the size; None: as they are. Loaded, they have the
            dtype of `captioner` again.

    Raises:
        InputError: the folder cannot be written to, the disk is full, adapters are on quantized layers, or a weight is
            too large for the dtype.
    """
    from safetensors.torch import save_file

    lm, description = captioner.language_model, captioner.describe()
    description["trained_on"] = {key: value for key, value in captioner.trained_on.items() if key != "store"}  # a path
    own_folder = lm.tuning == "frozen" and lm.quantization is None and Path(lm.name).is_dir()
    if lm.tuning != "frozen" or own_folder:
        with atomic_write_folder(folder / LANGUAGE_MODEL) as temporary:
            saved = lm.save_pretrained(temporary, dtype)
        description["language_model"] = saved | ({"name": WITHIN, "tuning": "frozen"} if own_folder else {})
    with atomic_write(folder / MAPPER) as temporary:
        weights = rounded(captioner.mapper.state_dict(), dtype)
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, temporary)
    if not (folder / CARD).exists():
        kept = card_beside(captioner.source)
        card = model_card(captioner, name or folder.resolve().name, license) if kept is None else read_text(kept)
        atomic_write_text(folder / CARD, card)
    atomic_write_text(folder / CONFIG, json.dumps(description, indent=2, ensure_ascii=False) + "\n")


def card_beside(source: Path | None) -> Path | None:
    """The model card that a captioner came with; `source` is where it was loaded from. A link to a file elsewhere is
    ignored, as it may not be meant to share.

    In the hub's cache every file is a link into another folder of the same model.
    """
    if source is None or not (source / CARD).is_file():
        return None
    is_cached = source.resolve().parent.name == "snapshots"
    within = source.resolve().parents[1] if is_cached else source.resolve()
    return source / CARD if (source / CARD).resolve().is_relative_to(within) else None


def load_own_language_model(folder: Path, description: dict[str, Any]) -> LanguageModel | None:
    """The language model in a folder that `save` wrote; None: the folder only names it."""
    name, tuning = description["name"], description["tuning"]
    if tuning != "full" and name != WITHIN:
        return None
    dtype = description.get("dtype", "float32")  # missing from older folders
    quantization = description.get("quantization")
    if quantization:  # such weights are trained no further
        tuning = "frozen"
    language_model = load_saved_model(folder / LANGUAGE_MODEL, tuning, dtype, quantization)
    if tuning == "full":
        language_model.name = name
    return language_model


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the mapper's weights, by their names in a captioner, of a folder that `save` wrote.

    Raises:
        InputError: it holds no captioner, or one of its files is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    remedy = "give a folder that save_pretrained wrote"
    if lacking := [file for file in (CONFIG, MAPPER) if not (folder / file).is_file()]:
        raise InputError(f"{folder} holds no captioner of prefixcap (it has no {lacking[0]}): {remedy}")
    description = require_description(read_json(folder / CONFIG), folder / CONFIG)
    if description["language_model"]["tuning"] == "lora":
        raise InputError(f"{folder / CONFIG}: adapters are merged in such a folder; {REMEDY}")
    try:
        weights = load_file(folder / MAPPER)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder / MAPPER} cannot be read ({error}): {remedy}") from error
    return description, {f"mapper.{name}": weight for name, weight in weights.items()}


def push(captioner: PrefixLM, name: str, license: str = "unknown", private: bool = False) -> str:
    """Upload what `save` writes to the model hub, as one commit.

    Args:
        captioner: to share.
        name: of the repository, e.g. "someone/captioner"; it is created if necessary.
        license: as in `save`.
        private: create a private repository.

    Returns:
        The URL of the repository.

    Raises:
        InputError: the name is invalid, the hub cannot be reached, or it refuses (log in with `hf auth login`, or set
            HF_TOKEN); or as `save`.
    """
    require_repository(name)
    with tempfile.TemporaryDirectory() as folder:
        save(captioner, Path(folder), license, name)
        return upload(Path(folder), name, private)


def locate(name: str | Path, revision: str | None = None) -> Path:
    """The file or folder of a captioner, as `prefixcap.load` takes it; fetched from the model hub, unless it is here.

    Args:
        name: a path, "photos", OWNER/NAME or OWNER/NAME@REVISION.
        revision: a branch, tag or commit on the hub; None: that of the name, or the latest.

    Raises:
        InputError: it cannot be downloaded, or a revision is given of what is not on the hub.
    """
    if not is_hub_name(name):
        if revision is not None:
            raise InputError(
                f"revision is for a name on the model hub, and {name} is here or no such name: leave it out"
            )
        return local_captioner(name)
    weights = ("*.safetensors", "model.safetensors.index.json")
    files = [CONFIG, MAPPER, CARD, *(f"{LANGUAGE_MODEL}/{file}" for file in (*TEXTS, *weights))]
    problem = f"there is no file or folder {name}, and it cannot be downloaded"
    return download(str(name) if revision is None else f"{name}@{revision}", files, problem)
