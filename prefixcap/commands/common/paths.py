"""Paths on the command line: what Hydra's grammar would read otherwise is quoted for it."""

import re
import shlex
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

# The options that take a file or a folder, or the name of one.
PATHS = {
    "annotations", "captions", "ckpt", "memory", "out", "perplexity_lm", "questions", "references", "relations", "root",
    "run_dir", "start", "tokenizer", "train_annotations",
    "data.root", "data.store", "data.reader.root", "data.reader.captions", "data.reader.annotations",
    "data.reader.split_file", "data.reader.images",
    "encoder.name", "lm.name", "method.encoder", "method.lm", "model.noise.offset",
}  # fmt: skip
LISTS = {"compare", "data.files", "data.reader.files"}  # that take a list of them, too


def quote_paths(arguments: list[str]) -> list[str]:
    """The arguments of a command, with the values of such options in quotes, and `~` as the home folder.

    A value that is the path of something there is that path, whatever else it could mean to Hydra. Otherwise `null`,
    interpolations, text in quotes, lists where an option takes them and, with `--multirun`, several values keep their
    meaning.
    """
    several = any(argument in ("-m", "--multirun") for argument in arguments)
    return [_quoted(argument, several) for argument in arguments]


def unquoted(argument: str) -> str:
    """What `quote_paths` makes this argument of: without the quotes that it gives by itself."""
    option, _, value = argument.partition("=")
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        plain = f"{option}={value[1:-1]}"
        if quote_paths([plain]) == [argument]:
            return plain
    return argument


def as_text(option: str, value: str) -> str:
    """What to type into a shell to give an option a text that Hydra could take for something else."""
    return shlex.quote(f"{option}={_in_quotes(value)}")


def _quoted(argument: str, several: bool) -> str:
    option, equals, value = argument.partition("=")
    name = option.lstrip("+")
    if not equals or not value or option.startswith(("-", "~")) or name not in PATHS | LISTS:
        return argument
    expanded = _with_home(value) if value.startswith("~") and not _is_there(value) else value
    if _is_there(expanded):
        value = "./???" if expanded == "???" else expanded  # which would be a value that must be given
        value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)  # else OmegaConf looks for the value of that name
    elif value == "null" or "${" in value or _is_grammar(argument, name, several):
        return argument
    else:
        value = expanded
    return f"{option}={_in_quotes(value)}"


def _is_grammar(argument: str, name: str, several: bool) -> bool:
    """Whether a value means something to Hydra that this option can take: text in quotes, a list, several values."""
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    value: Any = override.value() if override.is_sweep_override() else override._value
    if override.is_sweep_override():
        return several
    return isinstance(value, QuotedString) or (isinstance(value, list) and name in LISTS)


def _with_home(path: str) -> str:
    """A path with the home folder in the place of `~`; as it is, where there is none."""
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        return path


def _is_there(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long for a name, or no name
        return False


def _in_quotes(value: str) -> str:
    quote = Quote.double if "'" in value and '"' not in value else Quote.single
    return QuotedString(value, quote).with_quotes()
