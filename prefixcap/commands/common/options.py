"""Options that several commands have."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefixcap import photos
from prefixcap.checkpoints.paths import require_captioner

if TYPE_CHECKING:
    from prefixcap.captioner import Captioner

CAPTIONER = (
    "A checkpoint, a folder written by `export`, a .pt that ClipCap published, a name on the model hub "
    "(OWNER/NAME, or OWNER/NAME@REVISION), or photos, the "
    "captioner that comes with the package."
)


def existing_captioner(path: str | None) -> str | None:
    """The callback of options and arguments that name a captioner: a wrong path is reported without torch."""
    return path if path is None else str(require_captioner(path))


Checkpoint = Annotated[
    str | None,
    typer.Option(
        "--ckpt", metavar="PATH", help=f"{CAPTIONER} That is the default.", show_default=False,
        callback=existing_captioner,
    ),
]  # fmt: skip
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="cpu, cuda:1, ...; auto: a GPU if there is one.")]


def load_captioner(ckpt: str | None, device: str, tokenizer: str | None = None, **precision: Any) -> "Captioner":
    """The captioner of `--ckpt`, with its encoder; without one that of the package, which a line on stderr says. What
    is in `precision` goes to `load`."""
    from prefixcap.captioner import load
    from prefixcap.utils.hardware import usable_device

    captioner = load(ckpt or photos.require_captioner(), usable_device(device), tokenizer, **precision)
    captioner.encoder()
    announce(ckpt)
    return captioner


def announce(ckpt: str | None) -> None:
    """Say which captioner it is if none is named."""
    if ckpt is None:
        print(
            f"Captioned by {photos.CARD}, the captioner that comes with the package; its model card: prefixcap info "
            f"{photos.NAME}", file=sys.stderr,
        )  # fmt: skip
