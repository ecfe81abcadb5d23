"""The grammar of commands with options, where it is more than Typer's."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typer.core import TyperCommand, TyperOption

from prefixcap.errors import InputError


class OptionCommand(TyperCommand):
    """A command whose options can take several values, `--seeds 0 1 2`, namely those whose metavar ends in `...`.

    An option that is spelled as Hydra's are, `ckpt=x`, is answered with the right spelling, `--ckpt x`.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        return without_flag_types(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        options = {name: option for option in self.params if isinstance(option, TyperOption) for name in option.opts}
        words: list[str] = []
        several, is_value = "", False  # the option that takes all values up to the next one; whether one must follow
        for word in args:
            if is_value:
                is_value = False
            elif word.startswith("-"):
                name, equals, _ = word.partition("=")
                option = options.get(name)
                several = name if option and (option.metavar or "").endswith("...") else ""
                is_value = option is not None and not option.is_flag and not equals
            elif several:
                words.append(several)
            else:
                _refuse_hydra_spelling(word, options)
            words.append(word)
        return super().parse_args(ctx, words)


def without_flag_types(params: Sequence[Any]) -> list[Any]:
    """Parameters for the help, in which Typer would show `<bool>` after a flag."""
    for param in params:
        if isinstance(param, TyperOption) and param.is_flag:
            param.metavar = ""
    return list(params)


def _refuse_hydra_spelling(word: str, options: Mapping[str, TyperOption]) -> None:
    name, equals, value = word.partition("=")
    option = f"--{name.replace('_', '-')}"
    if equals and option in options and not Path(word).exists():
        spelling = option if options[option].is_flag else f"{option} {shlex.quote(value)}"
        raise InputError(f"cannot understand {word}: write {spelling}")
