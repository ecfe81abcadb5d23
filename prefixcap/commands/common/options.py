"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

CAPTIONER = "A checkpoint, a folder written by `export`, a .pt that ClipCap published, or a name on the model hub."

Checkpoint = Annotated[Path, typer.Option("--ckpt", metavar="PATH", help=CAPTIONER)]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="cpu, cuda:1, ...; auto: a GPU if there is one.")]
