"""The options in `conf/`, with the comments that describe them: for the help and for suggestions. Loads no Hydra."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import yaml

from prefixcap.commands.common.conf import config_folder

HIDDEN = ("hydra", "_target_")


class Option(NamedTuple):
    """An option: its name (`optimizer.learning_rate`), its value as it stands in the file, and its comment."""

    name: str
    value: str
    about: str


class Group(NamedTuple):
    """A configuration group: its name, the choice by default (`null`: none), and what the comment says."""

    name: str
    default: str
    about: str


class File(NamedTuple):
    """A file of `conf/`: the comment at its top, its entries in `defaults`, its options, and `hydra.help.header`."""

    heading: str
    defaults: list[Option]
    options: list[Option]
    examples: str


@functools.cache
def read_file(name: str) -> File:
    """A file below `conf/`, e.g. "train" or "model/mlp".

    A comment after an option describes it; lines below it that begin in the same column continue it.
    """
    text = (config_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    root, lines = yaml.compose(text), text.splitlines()
    comments = itertools.takewhile(lambda line: line.startswith("#"), lines)
    heading = "".join(
        f"\n{line[1:]}" if line.startswith("#  ") else line[1:]
        for line in comments
        if not line.startswith("# @package")
    )
    defaults: list[Option] = []
    for entry in next((value.value for key, value in root.value if key.value == "defaults"), []):
        (key, value), *_ = entry.value if isinstance(entry, yaml.MappingNode) else [(None, entry)]
        defaults.append(Option(key.value if key else "", _source(value, text), _comment(value, lines)))
    hydra_help = (yaml.safe_load(text).get("hydra") or {}).get("help", {})
    options = list(_options(root, "", text, lines))
    return File(heading.strip(), defaults, options, hydra_help.get("header", "").rstrip())


def groups(config_name: str) -> list[Group]:
    """The configuration groups of a command, in the order of its file."""
    entries = [entry for entry in read_file(config_name).defaults if entry.name and " " not in entry.name]
    return [Group(entry.name, entry.value, entry.about) for entry in entries]


def choices(group: str) -> list[str]:
    """The choices of a group."""
    return sorted(file.stem for file in (config_folder() / group).glob("[!_]*.yaml"))


def chosen(config_name: str, words: Sequence[str]) -> dict[str, list[str]]:
    """The choices in each group that a command line results in, by group; unknown ones are left out."""
    names = {group.name: group.default for group in groups(config_name)}
    given = {name: value for name, equals, value in (word.partition("=") for word in words) if equals and name in names}
    if "experiment" in given and given["experiment"] in choices("experiment"):
        for entry in _experiment_defaults(given["experiment"]):
            names[entry.name.removeprefix("override /")] = entry.value
    names |= given
    if "data" in names and "recipe" not in names and names["data"] in choices("recipe") and config_name == "train":
        names["recipe"] = names["data"]
    listed = {group: [name.strip() for name in value.strip("[]").split(",")] for group, value in names.items()}
    return {group: [name for name in wanted if name in choices(group)] for group, wanted in listed.items()}


def group_options(group: str, choice: str) -> list[Option]:
    """The options of a choice, `GROUP.NAME`, those that it inherits included; an option that it only changes keeps the
    comment of the file that it comes from."""
    prefix = "" if group in ("experiment", "recipe") else f"{group}."
    options: dict[str, Option] = {}
    file = read_file(f"{group}/{choice}")
    for entry in file.defaults:
        if not entry.name and entry.value != "_self_" and entry.value in [*choices(group), "_common"]:
            options |= {option.name: option for option in group_options(group, entry.value)}
    for option in file.options:
        name = f"{prefix}{option.name}"
        inherited = options[name].about if name in options else ""
        options[name] = Option(name, option.value, option.about or inherited)
    return list(options.values())


def option_names(config_name: str, words: Sequence[str] = ()) -> list[str]:
    """All options that a command line can set, with the groups and the keys within options such as `{layers: 8}`."""
    options = list(read_file(config_name).options)
    for group, wanted in chosen(config_name, words).items():
        options += [option for choice in wanted for option in group_options(group, choice)]
    names = [group.name for group in groups(config_name)]
    for option in options:
        keys = yaml.safe_load(option.value) if option.value.startswith("{") else []
        names += [option.name, *(f"{option.name}.{key}" for key in keys)]
    return list(dict.fromkeys(names))


def _experiment_defaults(experiment: str) -> Iterator[Option]:
    for entry in read_file(f"experiment/{experiment}").defaults:
        if not entry.name and entry.value in choices("experiment"):
            yield from _experiment_defaults(entry.value)
        elif entry.name.startswith("override /"):
            yield entry


def _options(mapping: yaml.MappingNode, prefix: str, text: str, lines: list[str]) -> Iterator[Option]:
    for key, value in mapping.value:
        name = f"{prefix}{key.value}"
        if key.value in HIDDEN or name == "defaults":
            continue
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            if about := _comment(key, lines):
                yield Option(name, "", about)
            yield from _options(value, f"{name}.", text, lines)
        else:
            yield Option(name, _source(value, text), _comment(value, lines))


def _source(node: yaml.Node, text: str) -> str:
    return text[node.start_mark.index : node.end_mark.index].strip()


def _comment(node: yaml.Node, lines: list[str]) -> str:
    """The comment behind a node, and its continuation on the lines below."""
    line, column = node.end_mark.line, node.end_mark.column
    start = lines[line].find("#", column)
    if start < 0 or lines[line][column:start].strip(" :"):
        return ""
    words = [lines[line][start + 1 :].strip()]
    for below in lines[line + 1 :]:
        if below.find("#") != start or below[:start].strip():
            break
        words.append(below[start + 1 :].strip())
    return " ".join(words)
