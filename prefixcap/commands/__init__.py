"""The `prefixcap` command.

Each module here has the commands of a group. What they need is imported when they run: `prefixcap --help` and shell
completion, which asks at every key, wait for no model code.
"""

import os
import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from prefixcap import __version__
from prefixcap.commands import caption, looking, scripts, setup, sharing
from prefixcap.errors import InputError
from prefixcap.utils.files import no_space

app = typer.Typer(
    help="Captions for images, by conditioning a language model on CLIP.",
    epilog="""A first captioner, of the bundled small world, in some minutes on a CPU; \
the last line names its checkpoint:

  prefixcap train

Captions for a folder of images:

  prefixcap caption photos --ckpt runs/.../best.ckpt --format csv

`prefixcap COMMAND --help` says more, with examples. `prefixcap doctor` says what this machine has and lacks.""",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for group in (caption.app, scripts.app, looking.app, sharing.app, setup.app):
    app.add_typer(group)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"prefixcap {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line. A mistake ends in one line, `error: ...`, and status 2; Ctrl-C in status 130."""
    try:
        status = app(sys.argv[1:] or ["--help"], prog_name="prefixcap", standalone_mode=False)
        sys.stdout.flush()  # where it cannot be written, that is told below, not when Python ends
    except (InputError, TyperException) as error:
        status = _told(_explain(error))
    except OSError as error:
        if not no_space(error) and not isinstance(error, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left over could not be written either
        status = (
            1 if isinstance(error, BrokenPipeError) else _told("no space left on the disk: free some and run again")
        )
    if status:
        sys.exit(status)


def _told(mistake: str) -> int:
    print(f"error: {' '.join(mistake.split())}", file=sys.stderr)
    return 2


def _explain(error: InputError | TyperException) -> str:
    if isinstance(error, InputError):
        return str(error)
    message, context = error.format_message().replace("Value error, ", "").rstrip("."), getattr(error, "ctx", None)
    command = context.command_path if context is not None else "prefixcap"
    return f"{message[:1].lower()}{message[1:]}; see `{command} --help`"
