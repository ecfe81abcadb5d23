"""How every command that Hydra configures starts: Hydra composes the configuration, and a mistake ends in one line."""

import difflib
import functools
import inspect
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prefixcap.commands.common.checks import check_config
from prefixcap.commands.common.conf import config_folder
from prefixcap.commands.common.conf_options import option_names
from prefixcap.commands.common.hydra_grammar import answer_without_running, similar_options
from prefixcap.commands.common.paths import as_text, quote_paths, unquoted
from prefixcap.demo import language_model_beside
from prefixcap.errors import InputError, OptionError
from prefixcap.utils.deferred import deferred
from prefixcap.utils.files import no_space
from prefixcap.utils.options import declared_options

# What an option that corrects a mistake is called on the command line, by its name in Python.
OPTIONS = {
    "accumulate_grad_batches": "trainer.accumulate_grad_batches",
    "compile": "compile",
    "cuda_graphs": "cuda_graphs",
    "dtype": "lm.dtype",
    "gradient_checkpointing": "lm.gradient_checkpointing",
    "heads": "model.mapper.heads",
    "input_dim": "model.mapper.input_dim",
    "max_tokens": "val_max_tokens",
    "normalize_embeddings": "model.normalize_embeddings",
    "on_device": "data.on_device",
    "prefix_length": "model.mapper.prefix_length",
    "reward": "scst.reward",
    "start_token": "model.start_token",
    "tuning": "model.lm_tuning",
}

# The extras whose packages bring a part of Hydra.
_PLUGINS = {"hydra/sweeper/optuna": "sweep", "hydra/launcher/submitit_slurm": "slurm"}

# Arguments of classes that the commands set themselves, and the command line cannot.
GIVEN = ("callbacks", "plugins", "logger", "default_root_dir")


def sweep_number() -> str:
    """What distinguishes a run's folder from others that start in the same second, of a job array or a sweep:
    "-" and its number; otherwise nothing.
    """
    hydra = HydraConfig.get()
    numbers = [os.environ.get("SLURM_ARRAY_TASK_ID", ""), str(hydra.job.num) if hydra.mode == RunMode.MULTIRUN else ""]
    return "".join(f"-{number}" for number in numbers if number.isdecimal())


# What configurations of all commands may call.
OmegaConf.register_new_resolver("sweep_number", sweep_number, replace=True)
OmegaConf.register_new_resolver("if_starts", lambda start, then, otherwise: then if start else otherwise, replace=True)
OmegaConf.register_new_resolver("language_model_beside", language_model_beside, replace=True)


def run(main: Callable[[DictConfig], float | None], config_name: str) -> None:
    """Compose `conf/<config_name>.yaml` with the command line and call `main` with the result.

    A mistake of the user (an InputError, or an option or a value that Hydra refuses) is printed to stderr as one line,
    `error: ...`, and ends the process with status 2; Ctrl-C ends it with 130. `-h` and `--help` print the help.

    Args:
        main: the command. Its `config.data.options` are the options that chose the data set on the command line.
        config_name: the name of its configuration.
    """
    with _mistakes_in_one_line():
        if answer_without_running(config_name, sys.argv[1:]):
            return
    sys.argv[1:] = quote_paths(sys.argv[1:])
    os.environ["HYDRA_FULL_ERROR"] = "1"  # lets exceptions through, to be reported in one line here

    @functools.wraps(main)
    def task(config: DictConfig) -> float | None:
        with _mistakes_in_one_line():  # here too, because Hydra adds lines to an exception that leaves a task
            if config_name != "embed":
                _need_no_files(config)
            if missing := sorted(OmegaConf.missing_keys(config)):
                raise InputError(f"{missing[0]} must be given: add {missing[0]}=VALUE")
            if config.get("data"):
                OmegaConf.update(config, "data.options", data_options(), force_add=True)
            check_config(config)
            return main(config)

    with _mistakes_in_one_line(), _plain_warnings():
        while True:
            try:
                hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=config_name)(task)()
                return
            except ConfigCompositionException as error:
                sys.argv = _with_unlisted_option(sys.argv, error, config_name)


def _with_unlisted_option(arguments: list[str], error: ConfigCompositionException, config_name: str) -> list[str]:
    """The command line with `++` before an option that Hydra refused because the configuration does not list it.

    Raises:
        InputError: there is no such option; the message names similar ones.
        ConfigCompositionException: the error is about something else.
    """
    node: Any = getattr(error.__cause__, "parent_node", None)
    refused = re.match("Could not override '([^']*)'", str(error))
    if refused is None or not isinstance(node, DictConfig):
        raise error
    option, key = refused[1], str(error.__cause__.key)  # type: ignore[union-attr]
    group = node._get_full_key(None)
    more = _taken(group, node)
    if key not in more:
        raise _unknown_option(
            option, group, key, sorted({*map(str, node), *more}), option_names(config_name, arguments)
        )
    name = f"{group}.{key}"
    added = [f"++{argument}" if re.match(rf"{re.escape(name)}[.=]", argument) else argument for argument in arguments]
    if added == arguments:  # the option is in a file of conf/
        raise error
    return added


def _taken(group: str, node: DictConfig) -> set[str]:
    """Options that a group of the configuration accepts without listing them."""
    if "_target_" in node:
        return set(inspect.signature(deferred(node["_target_"])).parameters) - {*GIVEN}
    if group == "data.reader":
        from data_prep.readers import READERS

        return {"_target_", *(declared_options(READERS[node.name]) if node.get("name") in READERS else ())}
    if group == "optimizer":
        from prefixcap.training.optimizer import OPTIONS

        return set(OPTIONS)
    if group == "objective":
        from prefixcap.training.objectives import OBJECTIVES

        return {name for part in OBJECTIVES.values() for name in list(inspect.signature(part).parameters)[2:]}
    if group == "prompts":
        from prefixcap.prompts import PROVIDERS

        parts = [PROVIDERS[name] for name in PROVIDERS if name == node.get("name", name)]
        return {"name", "max_prompt_tokens"}.union(*(list(inspect.signature(part).parameters)[2:] for part in parts))
    if group == "decode":
        from prefixcap.decoding import own_options

        return set(own_options(node.method))
    return set()


def _unknown_option(option: str, group: str, key: str, names: list[str], all_names: list[str]) -> InputError:
    names = [name for name in names if name not in ("_target_", "hydra")]
    similar = [f"{group}.{name}" if group else name for name in difflib.get_close_matches(key, names, 3)]
    if similar := similar or ([] if group else similar_options(option, all_names)):
        return InputError(f"there is no option '{option}'; did you mean {' or '.join(similar)}?")
    listed = f"{group} has {', '.join(names)}" if group and len(names) < 20 else "add --help to see them all"
    return InputError(f"there is no option '{option}'; {listed}")


def data_options() -> list[str]:
    """The options of this command line that choose the data set, quoted for a shell."""
    hydra_config = HydraConfig.get()
    options = [option for option in hydra_config.overrides.task if option.lstrip("+").startswith("data.")]
    return [f"data={hydra_config.runtime.choices['data']}", *(shlex.quote(unquoted(option)) for option in options)]


def _need_no_files(config: DictConfig) -> None:
    """If a feature store is named, the files that it was made from need not be."""
    if config.get("data") and config.data.get("store"):
        for option in config.data:
            if OmegaConf.is_missing(config.data, option):
                config.data[option] = None


def command(name: str) -> str:
    """How to call another command: as this one was called, `python eval.py` or `prefixcap eval`."""
    return f"prefixcap {name}" if Path(sys.argv[0]).parent.name == "commands" else f"python {name}.py"


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """A context in which a warning is one line, without the place in the code that it comes from."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {' '.join(str(message).split())}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


@contextmanager
def _mistakes_in_one_line() -> Iterator[None]:
    try:
        yield
    except (InputError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {' '.join(_explain(error).split())}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if not no_space(error):
            raise
        print(
            f"error: no space left on the disk ({error}): free some and run again; what was made is kept",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


def _explain(error: Exception) -> str:
    """The mistake in the user's terms. An exception that is a bug is raised again."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, InputError):
        cause = cause.__cause__
    if cause is not None:
        return cause.spelled(lambda name: OPTIONS.get(name, name)) if isinstance(cause, OptionError) else str(cause)
    first_line = str(error).partition("\n")[0].partition(", set env var")[0]
    if isinstance(error, MissingConfigException) and (extra := _PLUGINS.get(error.missing_cfg_file or "")):
        return f'{error.missing_cfg_file} needs a package that is not installed: pip install "prefixcap[{extra}]"'
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"there is no {group}={choice}; choose one of {', '.join(o for o in error.options if o[0] != '_')}"
    if isinstance(error, OverrideParseException):
        option, equals, value = error.override.partition("=")
        remedy = f"; if this is text, write {as_text(option, value)}" if equals and option else ""
        return f"cannot understand {error.override!r}: {first_line}{remedy}"
    if missing := re.search(r"Missing mandatory value: ([\w.]+)", first_line):
        return f"{missing[1]} must be given: add {missing[1]}=VALUE"
    if isinstance(error, InstantiationException) and first_line.startswith("Error in call"):
        if "argument" not in str(error.__cause__):
            raise error
        return str(error.__cause__)
    return first_line
