"""How every script starts: Hydra composes the configuration, and a mistake ends in one line."""

import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prefixcap.errors import InputError
from prefixcap.files import no_space


def run(main: Callable[[DictConfig], float | None], config_name: str) -> None:
    """Compose `conf/<config_name>.yaml` with the command line and call `main` with the result.

    A mistake of the user (an InputError, or an option or a value that Hydra refuses) is printed to stderr as
    one line, `error: ...`, and ends the process with status 2; Ctrl-C with 130.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # lets the exceptions through, so that they can be told in one line here
    conf = Path(__file__).resolve().parent.parent / "conf"

    @functools.wraps(main)
    def task(config: DictConfig) -> float | None:
        with _mistakes_in_one_line():  # here too, because Hydra adds lines of its own to what leaves a task
            if missing := sorted(OmegaConf.missing_keys(config)):
                raise InputError(f"{missing[0]} must be given: add {missing[0]}=VALUE")
            return main(config)

    with _mistakes_in_one_line():
        hydra.main(version_base="1.3", config_path=str(conf), config_name=config_name)(task)()


def command(script: str) -> str:
    """How to call another script: in the way that this one was called, `python eval.py` or `prefixcap eval`."""
    return f"prefixcap {script}" if Path(sys.argv[0]).parent.name == "scripts" else f"python {script}.py"


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
    """The mistake in the user's terms. A bug in what Hydra was to build is raised again."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, InputError):
        cause = cause.__cause__
    if cause is not None:
        return str(cause)
    first_line = str(error).partition("\n")[0].partition(", set env var")[0]
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"there is no {group}={choice}; choose one of {', '.join(o for o in error.options if o[0] != '_')}"
    if isinstance(error, OverrideParseException):
        return f"cannot understand {error.override!r}: {first_line}"
    if unknown := re.match(r"Could not override '([^']*)'", first_line):
        return f"there is no option {unknown[1]!r}; add `--cfg job` to see those there are"
    if missing := re.search(r"Missing mandatory value: ([\w.]+)", first_line):
        return f"{missing[1]} must be given: add {missing[1]}=VALUE"
    if isinstance(error, InstantiationException) and first_line.startswith("Error in call"):
        if "argument" not in str(error.__cause__):
            raise error
        return str(error.__cause__)
    return first_line
