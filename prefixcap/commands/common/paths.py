"""Paths on the command line, quoted where Hydra's grammar would read them as something else."""

import re
import shlex
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

# The options whose value is a file or a folder, or the name of one.
PATHS = {
    "annotations", "captions", "ckpt", "memory", "out", "perplexity_lm", "questions", "references", "relations", "root",
    "run_dir", "start", "tokenizer", "train_annotations",
    "data.root", "data.store", "data.reader.root", "data.reader.captions", "data.reader.annotations",
    "data.reader.split_file", "data.reader.images",
    "encoder.name", "lm.name", "method.encoder", "method.lm", "model.noise.offset",
}  # fmt: skip
LISTS = {"compare", "data.files", "data.reader.files"}  # whose value may also be a list of them


def quote_paths(arguments: list[str]) -> list[str]:
    """The arguments of a command, with the values of these options in quotes, and with `~` expanded.

    A value that is an existing path is read as that path, even if it could mean something else to Hydra. Otherwise
    `null`, interpolations, quoted text, lists for options in `LISTS` and, with `--multirun`, several values keep their
    meaning.
    """
    several = any(argument in ("-m", "--multirun") for argument in arguments)
    return [_quoted(argument, several) for argument in arguments]


def unquoted(argument: str) -> str:
    """The argument before `quote_paths` quoted it."""
    option, _, value = argument.partition("=")
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        plain = f"{option}={value[1:-1]}"
        if quote_paths([plain]) == [argument]:
            return plain
    return argument


def as_text(option: str, value: str) -> str:
    """What to type into a shell so that Hydra reads the value of an option as text."""
    return shlex.quote(f"{option}={_in_quotes(value)}")


def _quoted(argument: str, several: bool) -> str:
    option, equals, value = argument.partition("=")
    name = option.lstrip("+")
    if not equals or not value or option.startswith(("-", "~")) or name not in PATHS | LISTS:
        return argument
    expanded = _with_home(value) if value.startswith("~") and not _is_there(value) else value
    if _is_there(expanded):
        value = "./???" if expanded == "???" else expanded  # Hydra's mark of a missing value
        value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)  # otherwise OmegaConf looks for the value of that name
    elif value == "null" or "${" in value or _is_grammar(argument, name, several):
        return argument
    else:
        value = expanded
    return f"{option}={_in_quotes(value)}"


def _is_grammar(argument: str, name: str, several: bool) -> bool:
    """Whether a value has a meaning to Hydra that this option accepts: quoted text, a list, or several values."""
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    value: Any = override.value() if override.is_sweep_override() else override._value
    if override.is_sweep_override():
        return several
    return isinstance(value, QuotedString) or (isinstance(value, list) and name in LISTS)


def _with_home(path: str) -> str:
    """A path with `~` expanded; unchanged if there is no such home folder."""
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        return path


def _is_there(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long for a name, or not a name
        return False


def _in_quotes(value: str) -> str:
    quote = Quote.double if "'" in value and '"' not in value else Quote.single
    return QuotedString(value, quote).with_quotes()
