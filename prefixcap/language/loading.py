"""Load language models by name, and rebuild those in checkpoints and exported folders.

Models may come from strangers: configurations and tokenizers are read as text, and code beside the weights is never
run.
"""

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from prefixcap.demo import ASSETS
from prefixcap.errors import InputError, OptionError
from prefixcap.language.checks import Tuning, check_tuning, require_embedded_tokens
from prefixcap.language.files import TEXTS
from prefixcap.language.lora import Lora
from prefixcap.language.model import LanguageModel
from prefixcap.language.quantization import checkpoint_layers, keep_differentiable, quantization_config
from prefixcap.utils.files import parse_json, read_json
from prefixcap.utils.hardware import out_of_memory
from prefixcap.utils.hub import missing_language_model, model_folder, read_config, require_no_adapter, split_revision
from prefixcap.utils.options import Dtype, Quantization
from prefixcap.weights import REMEDY, Shapes, require_layers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

LONGEST_TEXT = 100_000_000  # characters of a tokenizer's file; the largest known have a third of this
OTHER_FILES = ("vocab_file", "merges_file", "spm_file", "tokenizer_file", "fast_tokenizer_files")
LARGEST_BUFFERS = 2**28  # values of a model's buffers, such as masks


def load_language_model(
    name: str,
    tuning: Tuning = "frozen",
    dtype: Dtype = "float32",
    quantization: Quantization | None = None,
    lora: Lora | None = None,
    gradient_checkpointing: bool = False,
    scratch: dict[str, Any] | None = None,
) -> LanguageModel:
    """Load a causal LM. Code that comes with a model is never run.

    Args:
        name: a folder, a name on the model hub, or "demo" for the small world's own.
        tuning: "frozen", "lora" or "full", see `LanguageModel`.
        dtype: of its weights.
        quantization: "8bit" or "4bit" weights in linear layers, see `prefixcap.language.quantization`; None: none.
        lora: options of adapters, see `LanguageModel`.
        gradient_checkpointing: recompute activations in the backward pass, see `prefixcap.language.quantization`.
        scratch: start from random weights, in an architecture with these values in its configuration, e.g.
            `{"n_layer": 4}`; only with tuning "full".

    Raises:
        InputError: there is no such model, it lacks weights, it is not a causal LM or needs code of its own, an option
            is invalid, or a required package is not installed.

    Examples:
        >>> load_language_model("demo").dim
        128
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if dtype not in get_args(Dtype):
        raise InputError(f"unknown dtype '{dtype}': choose one of {', '.join(get_args(Dtype))}")
    if quantization not in (None, *get_args(Quantization)):
        choices = " or ".join(get_args(Quantization))
        raise InputError(f"unknown quantization '{quantization}': choose {choices}, or leave it out")
    check_tuning(tuning, quantization)  # before a large model is loaded
    if scratch is not None and tuning != "full":
        raise OptionError(f"random weights (scratch) must be trained, and tuning={tuning!r} does not", tuning="full")
    options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if quantization is not None:
        options["quantization_config"] = quantization_config(quantization, options["dtype"])
    logging.disable_progress_bar()  # one for each shard is of little use and disturbs other output
    source = _folder("language model", name, weights=scratch is None)
    try:
        config, missing = read_config(source, **(scratch or {})), None
        if scratch is None:
            require_no_adapter(source)
            model, report = AutoModelForCausalLM.from_pretrained(
                source, config=config, output_loading_info=True, trust_remote_code=False, **options
            )
            missing = min(report["missing_keys"], default=None)
        else:
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)
    except Exception as error:  # a malformed folder makes transformers raise almost anything
        raise _cannot_load("language model", name, error) from error
    if missing is not None:  # transformers only warns, and initializes them at random
        raise InputError(f"language model '{name}' lacks weights, e.g. {missing}: give a complete causal LM")
    keep_differentiable(model)
    if gradient_checkpointing:
        checkpoint_layers(model)
    language_model = LanguageModel(model, load_tokenizer(name), name, tuning, lora)
    require_embedded_tokens(language_model)
    language_model.describe()  # raises what would otherwise fail at the first checkpoint
    return language_model


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of the causal LM called `name`, see `load_language_model`.

    Raises:
        InputError: there is none.
    """
    from transformers import AutoTokenizer

    what = "the tokenizer of language model"
    source = _folder(what, name, weights=False)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise _cannot_load(what, name, error) from error
    return tokenizer


def count_parameters(name: str) -> int | None:
    """The number of parameters of the causal LM called `name`; None: its configuration is not on this machine."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            source, revision = split_revision(str(ASSETS / "language_model") if name == "demo" else name)
            config = read_config(source, local_files_only=True, revision=revision)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception:  # of a malformed folder
        return None
    return int(sum(weight.numel() for weight in model.parameters()))


def rebuild_language_model(
    description: Mapping[str, Any], weights: Shapes | None = None, source: object = "the checkpoint"
) -> LanguageModel:
    """Rebuild the model that `LanguageModel.describe` described; tuned weights are still to be loaded.

    Args:
        description: from `LanguageModel.describe`, see `prefixcap.checkpoints.descriptions`.
        weights: the shapes of the weights that will be loaded; a larger model is not built.
        source: the file of the description, for messages.

    Raises:
        InputError: as `load_language_model`; or tuning is "full", and the description's files are neither configuration
            nor tokenizer, or describe a larger model than the weights.
    """
    name, tuning = description["name"], description["tuning"]
    dtype = description.get("dtype", "float32")  # an older checkpoint does not say
    if tuning != "full":
        lora = Lora(**description["lora"]) if tuning == "lora" else None
        return load_language_model(name, tuning, dtype, description.get("quantization"), lora)

    from transformers import AutoModelForCausalLM, AutoTokenizer

    files = _require_texts(description.get("files"), weights, source)
    with tempfile.TemporaryDirectory() as folder:
        for file, text in files.items():
            (Path(folder) / file).write_text(text, encoding="utf-8")
        try:
            config = read_config(folder)
            if weights is not None:
                _require_size(config, weights, source)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False).to(getattr(torch, dtype))
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:
            raise _cannot_load(f"{source}: the language model", name, error) from error
    return LanguageModel(model, tokenizer, name, tuning)


def load_saved_model(
    folder: Path, tuning: Tuning, dtype: Dtype, quantization: Quantization | None = None
) -> LanguageModel:
    """Load the model that `LanguageModel.save_pretrained` wrote.

    Raises:
        InputError: as `load_language_model`, or the folder's configuration describes a larger model than its weights.
    """
    try:
        weights = _shapes_in(folder)
        require_layers(_as_dict(read_json(folder / "config.json"), folder / "config.json"), weights, folder)
        _require_size(read_config(str(folder)), weights, folder)
    except Exception as error:
        raise _cannot_load("language model", str(folder), error) from error
    return load_language_model(str(folder), tuning, dtype, quantization)


def _folder(what: str, name: str, weights: bool) -> str:
    """The folder of a language model; `what` is loaded of it. Raises InputError if it cannot be fetched."""
    if name == "demo":
        return str(ASSETS / "language_model")
    return model_folder(name, f"cannot load {what} '{name}'", missing_language_model(name), weights)


def _require_texts(files: Any, weights: Shapes | None, source: object) -> dict[str, str]:
    """The files of a checkpoint, if they are such as `LanguageModel.describe` returns. Raises InputError otherwise."""
    if not isinstance(files, dict) or "config.json" not in files:
        raise InputError(f"{source}: its language model was tuned, but its configuration is missing; {REMEDY}")
    for name, text in files.items():
        if name not in TEXTS:
            raise InputError(f"{source} brings a file {name!r:.80}, which is part of no language model; {REMEDY}")
        if not isinstance(text, str) or len(text) > LONGEST_TEXT:
            raise InputError(f"{source}: its file {name} is no text, or too long; {REMEDY}")
        content = _as_dict(parse_json(text, f"{source}: {name}"), f"{source}: {name}") if name.endswith(".json") else {}
        if name == "config.json":
            require_layers(content, weights or {}, source)
        if others := [key for key in content if key in OTHER_FILES and content[key] is not None]:
            raise InputError(f"{source}: its {name} names another file ({others[0]}); {REMEDY}")
    return files


def _as_dict(value: Any, source: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{source} is a {type(value).__name__}, not an object of JSON; {REMEDY}")
    return value


def _shapes_in(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights in a folder's safetensors files, by name."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return shapes


def _require_size(config: "PretrainedConfig", weights: Shapes, source: object) -> None:
    """Refuse a configuration of a larger model than the weights, before memory is allocated for it."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    saved = sum(map(math.prod, weights.values()))
    parameters, buffers = (sum(one.numel() for one in each) for each in (model.parameters(), model.buffers()))
    if parameters > saved or buffers > max(saved, LARGEST_BUFFERS):
        raise InputError(
            f"{source}: the configuration of its language model makes one of {parameters:,} parameters, but the "
            f"weights beside it are {saved:,} numbers; {REMEDY}"
        )


def _cannot_load(what: str, name: str, error: Exception) -> Exception:
    """The error to raise in place of another library's."""
    if isinstance(error, InputError) or out_of_memory(error):
        return error
    reason = " ".join(str(error).split()) or type(error).__name__
    if "trust_remote_code" in reason:
        reason = "it needs code of its own, which is never run"
    return InputError(
        f"cannot load {what} '{name}': {reason[:300]}; "
        "give a folder saved with save_pretrained, or the name of a causal LM on the model hub"
    )
