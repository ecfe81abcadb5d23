"""The decoders in the help and the completion of a command, read from their dictionary when they are needed."""

import inspect
import textwrap
from typing import Any

from prefixcap.commands.common.typer_command import OptionCommand
from prefixcap.utils.options import Option

SEED = {"seed": Option(int, None, "of what is drawn: the same seed gives the same captions")}


def complete_decoder(incomplete: str) -> list[str]:
    """The names of decoders that begin so, for the shell."""
    from prefixcap.decoding import DECODERS

    return [name for name in DECODERS if name.startswith(incomplete)]


def describe_decoders() -> str:
    """The decoders and the options of each, as the help shows them."""
    from rich.markup import escape

    from prefixcap.decoding import DECODERS, decoder_label, decoder_options, draws, limits

    def block(heading: str, options: dict[str, Option]) -> str:
        lines = [heading]
        for name, option in options.items():
            default = f"default: {'none' if option.default is None else option.default}"
            default = "required" if option.default is inspect.Parameter.empty else default
            text = f"{option.description.replace('`', '')} [{default}]"
            lines.append(textwrap.fill(text, 76, initial_indent=f"  {name:20}", subsequent_indent=" " * 22))
        return escape("\n".join(lines))

    common = limits()
    blocks = [block("Options for --set, of all decoders:", common)]
    for name in DECODERS:
        own = {option: each for option, each in decoder_options(name).items() if option not in common}
        blocks.append(block(f"--decode {name}: {decoder_label(name)}", own | (SEED if draws(name) else {})))
    return "\n\n".join(blocks)


class CommandWithDecoders(OptionCommand):
    """A command whose help lists the decoders in `DECODERS` and their options, before its epilog."""

    def format_help(self, *arguments: Any) -> None:
        self.epilog = f"{describe_decoders()}\n\n{self.epilog}"
        super().format_help(*arguments)
