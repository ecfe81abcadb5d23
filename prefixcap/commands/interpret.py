"""Show what an image's prefix says to the language model: the tokens nearest to it.

Nearest by cosine between each prefix vector and the language model's word embeddings (Mokady et al. 2021, section 4). \
If the language model was tuned together with the mapper, the tokens are salient words of the image; if it was frozen, \
they are hardly readable.
"""

from pathlib import Path
from typing import Annotated

import typer

from prefixcap.commands.common.options import Checkpoint, Device, load_captioner
from prefixcap.errors import InputError

MAX_DRAWN = 20  # images in one picture

EXAMPLES = """  prefixcap interpret photo.jpg

  prefixcap interpret photo.jpg --ckpt best.ckpt

  prefixcap interpret a.jpg b.jpg --ckpt best.ckpt --count 3 --out prefixes.png"""


def main(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help="Image files.")],
    ckpt: Checkpoint = None,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens per prefix vector, nearest first.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Also draw images, captions and tokens.", show_default=False),
    ] = None,
    datastore: Annotated[
        Path | None,
        typer.Option(
            metavar="STORE", help="A feature store of captions, for a captioner that retrieves captions.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
) -> None:  # fmt: skip
    """Print the tokens nearest to the prefix of each image, and draw them if asked to."""
    from prefixcap.utils.images import open_image
    from prefixcap.utils.plotting import require_matplotlib, save_figure

    if out is not None:
        require_matplotlib()
        if out.suffix != ".png":
            raise InputError(f"cannot draw {out}: name a file that ends in .png")
        if len(images) > MAX_DRAWN:
            raise InputError(f"--out draws {MAX_DRAWN} images at most, not {len(images)}: give fewer images at a time")
    opened = [open_image(image) for image in images]
    from prefixcap import interpretation  # imports torch: after the checks

    captioner = load_captioner(ckpt, device)
    if datastore:
        captioner.use_datastore(datastore)
    embeddings = captioner.embed(opened)
    nearest = interpretation.interpret(captioner, embeddings, count)  # refuses what has no prefix
    captions = captioner.caption(embeddings)
    for image, caption, tokens in zip(images, captions, nearest, strict=True):
        print(f"{image}: {caption}\n{interpretation.table(tokens)}\n")
    if out is not None:
        save_figure(interpretation.draw(opened, captions, nearest), out)
        print(f"drawn: {out}")
