"""Models on the model hub or in its format: fetched by name, opened without running code of theirs, uploaded.

A name is OWNER/NAME, or OWNER/NAME@REVISION for a branch, tag or commit. What is in the hub's cache is not fetched
again, and is used where the hub cannot be reached.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefixcap.errors import InputError, first_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig

WEIGHTS = "model.safetensors (or pytorch_model.bin)"
TOKENIZER = "tokenizer.json (or vocab.json and merges.txt), tokenizer_config.json"
LOG_IN = "log in (hf auth login, or the variable HF_TOKEN)"

# What transformers reads of a model. Nothing else is fetched, above all no code.
_TEXTS = ("*.json", "*.txt", "*.model", "*.jinja")
_SAFETENSORS = ("model.safetensors", "model-*.safetensors")
_PICKLED = ("pytorch_model.bin", "pytorch_model-*.bin")  # of older models


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


def split_revision(name: str) -> tuple[str, str | None]:
    """OWNER/NAME@REVISION -> OWNER/NAME and the revision; None: the name has none, or is that of a folder."""
    repository, _, revision = (name, "", "") if Path(name).expanduser().is_dir() else name.partition("@")
    return repository, revision or None


def model_folder(name: str, problem: str, missing: str | None, weights: bool = True) -> str:
    """The folder of a model in the format of transformers.

    Args:
        name: a folder; if there is none of that name, a name on the model hub.
        problem: how an error begins, e.g. "cannot load encoder 'someone/clip'".
        missing: how to get the model by hand; None: nothing to be said of that.
        weights: whether they are needed. Only a model without safetensors has its pickled ones fetched.

    Raises:
        InputError: as `download`.
    """
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser())
    folder = download(name, (*_TEXTS, *_SAFETENSORS) if weights else _TEXTS, problem, missing)
    if weights and not any(folder.glob("model*.safetensors")):
        download(name, _PICKLED, problem, missing)
    return str(folder)


def download(name: str, files: Sequence[str], problem: str, missing: str | None = None) -> Path:
    """The folder in the hub's cache with the files of a repository that fit these patterns.

    Args:
        name: on the model hub.
        files: as in `fnmatch`.
        problem, missing: as in `model_folder`.

    Raises:
        Unreachable: they are not in the cache, and the hub cannot be reached or must not be asked.
        InputError: there is no such repository or revision, it is private or gated, or the download breaks off.
    """
    from huggingface_hub import snapshot_download

    repository, revision = split_revision(name)
    try:
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=list(files), tqdm_class=_late_bar())
        )
    except Exception as error:  # the type depends on the HTTP library of the hub's client
        reason, remedy = _reason(error, repository, revision)
        if remedy is None:
            raise Unreachable(f"{problem}, as {reason}: {missing or 'connect to the network once'}") from error
        raise InputError(f"{problem}, as {reason}: {remedy}") from error


def require_repository(name: str) -> None:
    """Raise InputError unless a repository on the model hub may have this name, which must name its owner."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
        is_valid = "/" in name
    except HFValidationError:
        is_valid = False
    if not is_valid:
        raise InputError(f"'{name}' is no name of a repository on the model hub: give OWNER/NAME")


def upload(folder: Path, name: str, private: bool = False, kind: str = "model") -> str:
    """Upload a folder as one commit, into a repository that is created if necessary.

    Args:
        folder: all of it.
        name: of the repository, OWNER/NAME.
        private: whether to create a private one; one that is there stays as it is.
        kind: "model" or "space".

    Returns:
        The URL of the repository.

    Raises:
        InputError: the name is invalid, the hub cannot be reached, or it refuses.
    """
    from huggingface_hub import HfApi

    require_repository(name)
    api = HfApi(library_name="prefixcap")
    sdk = "gradio" if kind == "space" else None
    try:
        address = api.create_repo(name, private=private, exist_ok=True, repo_type=kind, space_sdk=sdk)
        api.upload_folder(
            repo_id=name, folder_path=folder, repo_type=kind, commit_message="Upload a prefixcap captioner"
        )
    except Exception as error:
        told = getattr(getattr(error, "response", None), "headers", {}).get("X-Error-Message") or first_line(error)
        raise InputError(
            f"cannot upload to {name} on the model hub ({told}): is the name right, and may you write there? {LOG_IN}"
        ) from error
    return str(address)


def _reason(error: Exception, repository: str, revision: str | None) -> tuple[str, str | None]:
    """Why a download failed, and what to do about it; None: the hub cannot be reached."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"{constants.ENDPOINT}/{repository}"
    if isinstance(error, HFValidationError):
        return (
            "there is no such folder, and the model hub has no such names",
            "give a folder that save_pretrained wrote, or OWNER/NAME on the hub",
        )
    if isinstance(error, GatedRepoError):
        return "the model hub gives it to those who accept its terms", f"do so at {page}, and {LOG_IN}"
    if isinstance(error, RepositoryNotFoundError):
        return "the model hub has none of that name, or a private one", f"check the name; for a private one, {LOG_IN}"
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {revision!r}", f"give a branch, tag or commit of {page}"
    if getattr(getattr(error, "response", None), "status_code", None) == 401:
        return "the model hub does not accept your token", f"{LOG_IN} with another one"
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled | ConnectionError):
        if constants.HF_HUB_OFFLINE:
            return "it is not in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it", None
        return "the model hub cannot be reached", None
    return f"its download broke off ({first_line(error)})", "try again; files that are complete are kept"


def _late_bar() -> type:
    """A progress bar that is shown on a terminal only, and if a download takes longer than a second."""
    from tqdm import tqdm

    class LateBar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": None, "delay": 1, "leave": False})

        def display(self, *args: Any, **options: Any) -> None:  # which the hub's client calls at once
            if time.time() > self.start_t + self.delay:
                super().display(*args, **options)

    return LateBar


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

    repository, revision = split_revision(name)
    try:
        cached = try_to_load_from_cache(repository, "config.json", revision=revision)
        return Path(name).expanduser().is_dir() or isinstance(cached, str)
    except HFValidationError:
        return True


def by_hand(name: str, files: str) -> str:
    """How to fetch files of a model on the hub by hand."""
    from huggingface_hub import constants

    repository, revision = split_revision(name)
    return (
        f"{files} from {constants.ENDPOINT}/{repository}/resolve/{revision or 'main'}/ into the folder {name}/ here, "
        "or name another folder"
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
