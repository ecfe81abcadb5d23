"""The grammar of the commands that Hydra configures, `OPTION=VALUE`: their help, and an answer to another spelling.

Neither loads Hydra, torch or the command.
"""

import difflib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prefixcap.commands.common.conf_options import (
    Option,
    choices,
    chosen,
    group_options,
    groups,
    option_names,
    read_file,
)  # fmt: skip
from prefixcap.errors import InputError

if TYPE_CHECKING:
    from rich.panel import Panel

HELP = ("-h", "--help")
SWITCHES = (
    "-m", "--multirun", "-r", "--run", "--resolve", "--hydra-help", "--version", "-sc", "--shell-completion",
    "-i", "--info", *HELP,
)  # fmt: skip
TAKE_VALUE = (
    "-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir",
    "--experimental-rerun",
)  # fmt: skip

GRAMMAR = """Options are written OPTION=VALUE, without dashes: batch_size=64. null means no value, [A,B] is a list; \
quote what the shell would change: 'metrics=[BLEU,CIDEr]'.

  --cfg job      print the complete configuration, and stop
  --multirun     run once for each combination of values: seed=0,1,2
  --hydra-help   Hydra's own options

The options of a choice are described if it is on the command line: prefixcap {name} {group}={choice} --help"""


def command_name(config_name: str) -> str:
    """`prefixcap train-lm` for "train_lm"."""
    return f"prefixcap {config_name.replace('_', '-')}"


def answer_without_running(config_name: str, words: Sequence[str]) -> bool:
    """Print the help if a command line asks for it; whether it did.

    Args:
        config_name: the name of the command's configuration.
        words: the command line, without the name of the command.

    Raises:
        InputError: a word is neither OPTION=VALUE nor an option of Hydra's; the message has the right spelling.
    """
    if any(word in HELP for word in words):
        print_help(config_name, words)
        return True
    value_follows = False
    for place, word in enumerate(words):
        if value_follows:
            value_follows = False
        elif word in TAKE_VALUE:
            value_follows = True
        elif not _is_understood(word, words[place - 1] if place else ""):
            raise InputError(_correction(config_name, words, place))
    return False


def similar_options(name: str, names: Sequence[str]) -> list[str]:
    """Up to three options that a name may stand for, best first: `epochs`, `max-epochs` and `trainer.epoch` stand for
    `trainer.max_epochs`, `lr` for `optimizer.learning_rate`."""
    key = name.replace("-", "_").lower()
    last = {option: option.rpartition(".")[2] for option in names}
    parts = {option: end.split("_") for option, end in last.items()}
    tests = (
        lambda option: key == option,
        lambda option: key.rpartition(".")[2] == last[option],
        lambda option: len(key) > 1 and key == "".join(part[:1] for part in parts[option]),
        lambda option: {*key.rpartition(".")[2].split("_")} <= {*parts[option]},
    )
    for test in tests:
        if matching := [option for option in names if test(option)]:
            return matching[:3]
    close = difflib.get_close_matches(key, names, 3, 0.8)
    ends = difflib.get_close_matches(key.rpartition(".")[2], [*last.values()], 3, 0.8)
    return list(dict.fromkeys([*close, *(option for end in ends for option in names if last[option] == end)]))[:3]


def _is_understood(word: str, before: str) -> bool:
    if word.startswith("-"):
        name, equals, _ = word.partition("=")
        return name in (TAKE_VALUE if equals else SWITCHES)
    return "=" in word or word.startswith("~") or before in ("-i", "--info")


def _correction(config_name: str, words: Sequence[str], place: int) -> str:
    """The right spelling of `--epochs 3`, `--trainer.max_epochs=3` or `model mlp`."""
    word = words[place]
    name, equals, value = word.lstrip("-").partition("=")
    follows = words[place + 1] if place + 1 < len(words) else ""
    if not equals and follows and "=" not in follows and not follows.startswith("-"):
        word, value = f"{word} {follows}", follows
    names = option_names(config_name, words)
    similar = similar_options(name, names)
    if "ckpt" in names and word == words[place] and word[0] != "-" and (Path(word).exists() or word.endswith(".ckpt")):
        return f"cannot understand {word}: write ckpt={shlex.quote(word)}"
    if not similar:
        see = f"`{command_name(config_name)} --help` lists them"
        return f"cannot understand {word}: options are written OPTION=VALUE; {see}"
    spelled = [f"{option}={shlex.quote(value) if value else 'VALUE'}" for option in similar]
    if name.replace("-", "_") == similar[0]:
        return f"cannot understand {word}: write {spelled[0]}"
    return f"there is no option {word}: did you mean {' or '.join(spelled)}?"


def print_help(config_name: str, words: Sequence[str] = ()) -> None:
    """Print the help of a command: its groups, and the options of its configuration and of the choices in `words`."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=False)
    file, selected = read_file(config_name), chosen(config_name, words)
    name = command_name(config_name)
    console.print(Padding(Text(f"Usage: {name} [GROUP=CHOICE]... [OPTION=VALUE]...", "bold"), 1))
    console.print(Padding(Text(file.heading), (0, 1, 1, 1)))
    rows = []
    for group in groups(config_name):
        about = [group.about] if group.about else []
        default = group.default.strip("[]") or "null"
        rows.append(Option(group.name, default, "\n".join([*about, ", ".join(choices(group.name))])))
    console.print(_panel("Groups, with their choices", rows))
    console.print(_panel("Options", file.options))
    for group_name, selection in selected.items():
        for choice in selection:
            heading = read_file(f"{group_name}/{choice}").heading
            options = group_options(group_name, choice)
            if options or heading:
                console.print(_panel(f"{group_name}={choice}", options, heading))
    example = next(group for group in groups(config_name) if len(choices(group.name)) > 1)
    other = next(choice for choice in choices(example.name) if choice != example.default)
    footer = GRAMMAR.format(name=name.removeprefix("prefixcap "), group=example.name, choice=other)
    console.print(Padding(Text(f"{file.examples}\n\n{footer}"), 1))


def _panel(title: str, options: Sequence[Option], heading: str = "") -> "Panel":
    from rich.console import Group as Lines
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(max_width=34, overflow="fold")
    table.add_column(ratio=1, overflow="fold")
    for option in options:
        spelled = Text(option.name, "bold cyan")
        if option.value:
            spelled.append(f"={re.sub(' +', ' ', option.value)}", "dim")
        table.add_row(spelled, Text(option.about))
    lines = ([Text(heading)] if heading else []) + ([table] if options else [])
    return Panel(Lines(*lines), title=title, title_align="left", border_style="dim")
