"""The `prefixcap` command.

`COMMANDS` lists the sub-commands; each is a module of this package. A module is imported when its command is called,
so `prefixcap --help` and shell completion, which runs at every key press, load no model code. There are two kinds:

- a command with options, `--name VALUE`: its module has a function `main`, whose parameters Typer reads, a docstring,
  which is its help, and `EXAMPLES`, which end it;
- a command that Hydra configures, `name=VALUE` (`uses_hydra`): its module calls `hydra_main.run`, and its help comes
  from the comments in `conf/`.

A command may have sub-commands of its own: then it is a package with a list `COMMANDS` like this one.
"""

import importlib
import inspect
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from prefixcap import __version__
from prefixcap.commands.common.typer_command import OptionCommand, without_flag_types
from prefixcap.errors import InputError
from prefixcap.utils.files import no_space


class Command(NamedTuple):
    """A sub-command: its name, its module in this package, its panel of the help, and one line about it."""

    name: str
    module: str
    panel: str
    about: str
    uses_hydra: bool = False


CAPTION, STORES, TRAINING = "Caption images", "Prepare data", "Train and evaluate"
HELP = {"help_option_names": ["-h", "--help"]}
INSPECT, SHARE, FIGURES, SETUP = "Inspect", "Share", "Draw the papers' figures", "Set up"

COMMANDS = {
    command.name: command
    for command in (
        Command("caption", "caption", CAPTION, "Caption images: files, folders, patterns or URLs."),
        Command("serve", "serve", CAPTION, "Serve a web page and an HTTP API that caption images."),
        Command("embed", "embed", STORES, "Embed a data set once, with CLIP, into a feature store.", True),
        Command("verify", "verify", STORES, "Check feature stores, every byte."),
        Command("import-features", "import_features", STORES, "Make a feature store from existing embeddings."),
        Command("datastore", "datastore", STORES, "List and edit captions that captioners retrieve from."),
        Command("export-features", "export_features", STORES, "Write a feature store in clip-retrieval's format."),
        Command("train", "train", TRAINING, "Train a captioner.", True),
        Command("eval", "eval", TRAINING, "Caption a test split and score the captions.", True),
        Command("correlate", "correlate", TRAINING, "Measure how well metrics agree with people."),
        Command("leaderboard", "leaderboard", TRAINING, "Make one page of several evaluations."),
        Command("train-heads", "train_heads", TRAINING, "Give an image encoder a text side, by two heads."),
        Command("train-lm", "train_lm", TRAINING, "Fine-tune a language model on captions (MAGIC).", True),
        Command("vqa", "vqa", TRAINING, "Answer questions about images, zero-shot (MacCap).", True),
        Command("relations", "relations", TRAINING, "Benchmark arithmetic on embeddings (ZeroCap).", True),
        Command("compare-systems", "compare_systems", TRAINING, "Train and score text-only captioners side by side."),
        Command("reproduce", "reproduce", TRAINING, "Walk through a paper's tables; rehearse that in minutes."),
        Command("info", "info", INSPECT, "Describe a checkpoint and list its scores."),
        Command("interpret", "interpret", INSPECT, "Show the tokens nearest to an image's prefix."),
        Command("arithmetic", "arithmetic", INSPECT, "Describe a sum of images and texts (ZeroCap)."),
        Command("gap", "gap", INSPECT, "Measure the gap between images and captions (MacCap)."),
        Command("export", "export", SHARE, "Export a captioner: safetensors, ONNX or torch.export."),
        Command("import", "import_weights", SHARE, "Import weights published by ClipCap's authors."),
        Command("prefix-length", "prefix_length", FIGURES, "Scores by prefix length (ClipCap, Figure 7)."),
        Command("noise-variance", "noise_variance", FIGURES, "Scores by training noise (MacCap, Figures 4 and 5)."),
        Command("zerocap-lambda", "zerocap_lambda", FIGURES, "CLIPScore and perplexity by lambda (ZeroCap)."),
        Command("doctor", "doctor", SETUP, "Report what is installed here, and what is missing."),
        Command("setup-spice", "setup_spice", SETUP, "Install the parser that the SPICE metric needs."),
    )
}


class Commands(TyperGroup):
    """Sub-commands. Their list and its lines are those of `listed`; a module is imported when it is called."""

    listed = COMMANDS
    package = __name__

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = {
            name: TyperCommand(name, help=command.about, rich_help_panel=command.panel)
            for name, command in self.listed.items()
        }

    def get_params(self, ctx: Any) -> list[Any]:
        return without_flag_types(super().get_params(ctx))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        return name, load(str(name), self.listed, self.package), rest


def load(name: str, listed: Mapping[str, Command] = COMMANDS, package: str = __name__) -> TyperCommand | TyperGroup:
    """A sub-command, ready to be called."""
    command = listed[name]
    if command.uses_hydra:
        return _hydra_command(command)
    module = importlib.import_module(f"{package}.{command.module}")
    if hasattr(module, "COMMANDS"):
        return _group(name, module)
    single = typer.Typer(add_completion=False, rich_markup_mode="rich")
    help_text = inspect.cleandoc(module.__doc__ or "")
    command_class = getattr(module, "COMMAND_CLASS", OptionCommand)
    single.command(name, cls=command_class, help=help_text, epilog=module.EXAMPLES)(module.main)
    loaded = typer.main.get_command(single)
    assert isinstance(loaded, TyperCommand)
    return loaded


def _group(name: str, module: ModuleType) -> TyperGroup:
    """A command with sub-commands of its own."""
    own = type("Commands", (Commands,), {"listed": module.COMMANDS, "package": module.__name__})
    group = typer.Typer(
        cls=own, name=name, help=inspect.cleandoc(module.__doc__ or ""), epilog=module.EXAMPLES, add_completion=False,
        rich_markup_mode="rich", context_settings=HELP,
    )  # fmt: skip
    group.callback()(lambda: None)
    loaded = typer.main.get_command(group)
    assert isinstance(loaded, TyperGroup)
    return loaded


def _hydra_command(command: Command) -> TyperCommand:
    def run(context: typer.Context) -> None:
        from prefixcap.commands.common.hydra_grammar import answer_without_running

        if not answer_without_running(command.module, context.args):
            # Run as the main module: Lightning starts the further processes of a run with the same command.
            sys.argv = [sys.argv[0], *context.args]
            runpy.run_module(f"{__name__}.{command.module}", run_name="__main__", alter_sys=True)

    passed_on = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
    single = typer.Typer(add_completion=False)
    single.command(command.name, add_help_option=False, context_settings=passed_on)(run)
    loaded = typer.main.get_command(single)
    assert isinstance(loaded, TyperCommand)
    return loaded


app = typer.Typer(
    cls=Commands,
    help="Caption images by conditioning a language model on CLIP.",
    epilog="""Caption a photograph:

  prefixcap caption my_photo.jpg

Train a first captioner, of the bundled small world, in a few minutes on a CPU; \
the last line names its checkpoint:

  prefixcap train

Caption a folder of images with it:

  prefixcap caption photos --ckpt runs/.../best.ckpt --format csv

`prefixcap COMMAND --help` describes a command, with examples.""",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings=HELP,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"prefixcap {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main(name: str | None = None, arguments: Sequence[str] | None = None) -> None:
    """Run the command line. A mistake ends it with one line, `error: ...`, and status 2; Ctrl-C with status 130.

    Args:
        name: of a sub-command, which takes all arguments; None: the arguments start with its name.
        arguments: None: those that the process was started with.
    """
    words = [*([name] if name else []), *(sys.argv[1:] if arguments is None else arguments)]
    try:
        status = app(words or ["--help"], prog_name="prefixcap", standalone_mode=False)
        sys.stdout.flush()  # a full disk is reported below, not when Python exits
    except (InputError, TyperException) as error:
        status = _report(_explain(error))
    except OSError as error:
        if not no_space(error) and not isinstance(error, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer cannot be written
        status = (
            1 if isinstance(error, BrokenPipeError) else _report("no space left on the disk: free some and run again")
        )
    if status:
        sys.exit(status)


def _report(mistake: str) -> int:
    print(f"error: {' '.join(mistake.split())}", file=sys.stderr)
    return 2


def _explain(error: InputError | TyperException) -> str:
    if isinstance(error, InputError):
        return str(error)
    message, context = error.format_message().replace("Value error, ", "").rstrip("."), getattr(error, "ctx", None)
    command = context.command_path if context is not None else "prefixcap"
    return f"{message[:1].lower()}{message[1:]}; see `{command} --help`"
