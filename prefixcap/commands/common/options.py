"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

from prefixcap.checkpoints.paths import require_captioner

CAPTIONER = "A checkpoint, a folder written by `export`, a .pt that ClipCap published, or a name on the model hub."


def existing_captioner(path: Path | None) -> Path | None:
    """The callback of options and arguments that name a captioner: a wrong path is reported without torch."""
    return path if path is None else require_captioner(path)


Checkpoint = Annotated[Path, typer.Option("--ckpt", metavar="PATH", help=CAPTIONER, callback=existing_captioner)]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="cpu, cuda:1, ...; auto: a GPU if there is one.")]
