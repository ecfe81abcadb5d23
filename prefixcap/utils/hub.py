"""Models on the model hub or in its format: opened without running code of theirs, or how to fetch them by hand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefixcap.errors import InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

WEIGHTS = "model.safetensors (or pytorch_model.bin)"
TOKENIZER = "tokenizer.json (or vocab.json and merges.txt), tokenizer_config.json"


def read_config(source: str, **options: Any) -> "PretrainedConfig":
    """The configuration of a transformers model, without an attention kernel that it may ask for: that is code."""
    from transformers import AutoConfig

    config: PretrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=False, **options)
    config._attn_implementation = None  # in its parts, too
    return config


def require_no_adapter(source: str) -> None:
    """Refuse a model with an adapter beside it: transformers would open whatever base model the adapter names."""
    from transformers.utils import find_adapter_config_file

    if find_adapter_config_file(source) is not None:
        raise InputError(f"{source} has an adapter beside it: merge it into the model, and give that")


class Unreachable(InputError):
    """A model is not on this machine, and the network that it would come from cannot be reached."""


@contextmanager
def naming(missing: Callable[[str], str | None], name: str) -> Iterator[None]:
    """Let an error about a model that cannot be fetched also name another one that is missing.

    Args:
        missing: returns how to get the other one, see `missing_language_model`; None: it is there.
        name: of the other one.
    """
    try:
        yield
    except Unreachable as error:
        raise Unreachable("; and ".join(filter(None, (str(error), missing(name))))) from error


def missing_language_model(name: str) -> str | None:
    """How to get a language model by hand; None: it is on this machine, or not a name on the hub."""
    if name == "demo" or is_here(name):
        return None
    return f"for language model '{name}', fetch {by_hand(name, f'config.json, {WEIGHTS}, {TOKENIZER}')}"


def is_here(name: str) -> bool:
    """Whether a folder or a name on the hub needs no network, or could not be on the hub."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(name).expanduser().is_dir() or isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:
        return True


def by_hand(name: str, files: str) -> str:
    """How to fetch files of a model on the hub by hand."""
    from huggingface_hub import constants

    return (
        f"{files} from {constants.ENDPOINT}/{name}/resolve/main/ into the folder {name}/ here, or name another folder"
    )


def is_unreachable(error: BaseException) -> bool:
    """Whether an error of transformers or huggingface_hub means that the network could not be reached."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled | ConnectionError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
