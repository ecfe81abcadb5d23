"""What can be checked of a configuration before torch is imported: whether files are there, and options of parts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from prefixcap.checkpoints.paths import require_captioner
from prefixcap.commands.common.prompting import prompts_options
from prefixcap.decoding import check_decoder
from prefixcap.errors import spell_options
from prefixcap.mappers import check_mapper
from prefixcap.utils.deferred import deferred_imports
from prefixcap.utils.files import read_text
from prefixcap.utils.options import Dtype, check_options, check_value, signature_of

with deferred_imports():  # what follows imports torch: only what it declares is read here
    from prefixcap.language import load_language_model
    from prefixcap.language.lora import Lora
    from prefixcap.noise import Noise
    from prefixcap.sampling import Sampling
    from prefixcap.zeroshot.magic import Magic
    from prefixcap.zeroshot.zerocap import ZeroCapOptions

# What takes the options of a method, and how many of its arguments come before them.
STEERED = {"zerocap": (ZeroCapOptions, 0), "magic": (Magic, 2)}
_OF_STEERED = {"name", "lm", "encoder", "encoder_dtype"}  # in the group `method`, beside these options
_OF_CAPTIONER = {"method", "prompt", "rerank", "seed"}  # in the group `decode`, beside the decoder's and `Sampling`'s


def check_config(config: DictConfig) -> None:
    """Check the groups and options that several commands have, as far as the configuration has them.

    Raises:
        InputError: a file is missing, a part does not exist or does not take an option, or a value is out of range.
    """
    given = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    for option in ("ckpt", "start"):
        if given.get(option):
            require_captioner(given[option])
    if given.get("relations"):
        read_text(Path(given["relations"]))
    if given.get("decode"):
        others = _OF_CAPTIONER | {*signature_of(Sampling).parameters}
        with spell_options("decode.{}".format):
            own = {name: value for name, value in given["decode"].items() if name not in others}
            check_decoder(given["decode"].get("method"), 1, own)
    if model := given.get("model"):
        mapper = {name: value for name, value in model["mapper"].items() if name != "name"}
        check_mapper(model["mapper"].get("name"), mapper)
        check_options("model.noise", Noise, model.get("noise") or {})
    if (given.get("prompts") or {}).get("name"):  # of an evaluation, they may be changes of those of a checkpoint
        prompts_options(config)
    if lm := given.get("lm"):
        check_options("lm.lora", Lora, lm.pop("lora", {}))
        check_options("lm", load_language_model, lm)
    if (method := given.get("method")) and method["name"] in STEERED:
        method_options(method)


def method_options(method: Mapping[str, Any] | DictConfig) -> dict[str, Any]:
    """The options of what is steered, from the group `method`.

    Raises:
        InputError: there is no such option or type, or a value is out of range.
    """
    check_value("method.encoder_dtype", method["encoder_dtype"], Dtype)
    options = {str(name): value for name, value in method.items() if name not in _OF_STEERED}
    declared, positional = STEERED[method["name"]]
    return check_options(f"method {method['name']}", declared, options, positional)
