"""Commands that look inside: what a checkpoint is, what a prefix says, sums of images and texts, the modality gap."""

import json
from pathlib import Path
from typing import Annotated

import typer

from prefixcap.commands.common.options import CAPTIONER, Checkpoint, Device
from prefixcap.errors import InputError

app = typer.Typer()
PANEL = "Look inside"
MOST_DRAWN = 20  # images in one picture


@app.command(
    rich_help_panel=PANEL,
    epilog="""  prefixcap info runs/demo-transformer/2025-01-31_12-00-00/checkpoints/best.ckpt

  prefixcap info coco_weights.pt --json""",
)
def info(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help=CAPTIONER)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a checkpoint is, and how it scored.

    Encoder, mapper, language model, parameters, data; of a run, its best validation and its evaluations.
    """
    from prefixcap.commands.info import describe, format_description

    description = describe(checkpoint)
    print(json.dumps(description, indent=2, ensure_ascii=False) if as_json else format_description(description))


@app.command(
    help="""Say what an image's prefix says: the tokens nearest to it.

By the cosine of each prefix vector with the language model's word embeddings (Mokady et al. 2021, section 4). \
Where the language model was tuned with the mapper, the tokens are salient words of the image; where it was frozen, \
they are hardly readable.""",
    rich_help_panel=PANEL,
    epilog="""  prefixcap interpret photo.jpg --ckpt best.ckpt

  prefixcap interpret a.jpg b.jpg --ckpt best.ckpt --count 3 --out prefixes.png""",
)
def interpret(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help="Image files.")],
    ckpt: Checkpoint,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens for each vector, the nearest first.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(metavar="PICTURE.png", help="Draw images, captions and tokens.", show_default=False),
    ] = None,
    device: Device = "auto",
) -> None:
    """Print the tokens nearest to the prefix of each image, and draw them."""
    from prefixcap import interpretation
    from prefixcap.captioner import load
    from prefixcap.utils.hardware import usable_device
    from prefixcap.utils.images import open_image
    from prefixcap.utils.plotting import require_matplotlib, save_figure

    if out is not None:
        require_matplotlib()
        if out.suffix != ".png":
            raise InputError(f"cannot draw {out}: name a file that ends in .png")
        if len(images) > MOST_DRAWN:
            raise InputError(f"--out draws {MOST_DRAWN} images at most, not {len(images)}: draw them apart")
    opened = [open_image(image) for image in images]
    captioner = load(ckpt, usable_device(device))
    embeddings = captioner.embed(opened)
    captions, found = captioner.caption(embeddings), interpretation.interpret(captioner, embeddings, count)
    for image, caption, tokens in zip(images, captions, found, strict=True):
        print(f"{image}: {caption}\n{interpretation.table(tokens)}\n")
    if out is not None:
        save_figure(interpretation.draw(opened, captions, found), out)
        print(f"drawn: {out}")


@app.command(
    rich_help_panel=PANEL,
    epilog="""  prefixcap arithmetic "img:king.jpg - img:man.jpg + txt:'a woman'"

  prefixcap arithmetic "img:circle.png - txt:'red' + txt:'blue'" \\
      --encoder demo""",
)
def arithmetic(
    expression: Annotated[
        str,
        typer.Argument(
            metavar="EXPRESSION", help="Of img:PATH, txt:'TEXT' and emb:STORE#ID, with weights (0.5*...) and brackets."
        ),
    ],
    encoder: Annotated[str, typer.Option(metavar="NAME", help="A CLIP.")] = "clip:ViT-B/32",
    lm: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A language model, by name or folder; by default gpt2-medium, or demo with --encoder demo.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="What ZeroCap goes on from.")] = "Image of a",
    ckpt: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="A captioner: its encoder is taken, and it writes a second caption.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Put sums of images and texts into words (ZeroCap).

    Without training: CLIP steers a language model towards the sum while it writes.
    """
    from prefixcap.captioner import load
    from prefixcap.demo import language_model_beside
    from prefixcap.encoders import load_encoder
    from prefixcap.language import load_language_model
    from prefixcap.utils.hub import missing_language_model, naming
    from prefixcap.zeroshot import arithmetic as sums
    from prefixcap.zeroshot.zerocap import ZeroCap

    sums.parse(expression)  # before models are loaded
    captioner = load(ckpt) if ckpt else None
    lm = lm or language_model_beside(captioner.encoder_identity.name if captioner else encoder, "gpt2-medium")
    with naming(missing_language_model, lm):
        clip = sums.encoder_of(captioner) if captioner is not None else load_encoder(encoder)
    zerocap = ZeroCap(clip, load_language_model(lm), prompt=prompt, end_factor=1.06, end_from=1)
    print(sums.arithmetic(expression, zerocap))
    if captioner is not None:
        print(f"{ckpt}: {sums.arithmetic(expression, captioner)}")


@app.command(
    rich_help_panel=PANEL,
    epilog="""  prefixcap embed data=demo 'features=\\[image,regions,caption]' \\
      data.store=stores/gap

  prefixcap gap stores/gap --split val""",
)
def gap(
    store: Annotated[
        str,
        typer.Argument(metavar="STORE", help="A feature store with images, regions and captions: a folder or a URL."),
    ],
    split: Annotated[str, typer.Option(metavar="NAME", help="Which images.")] = "val",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="For numbers and figures (default: below runs/gap).", show_default=False),
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(metavar="N", help="Draw so many pairs of image and caption (default: all).", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the draw.")] = 0,
    projection: Annotated[str, typer.Option(metavar="NAME", help="pca, or umap, which needs umap-learn.")] = "pca",
) -> None:
    """Measure the gap between images and captions (MacCap)."""
    from prefixcap.commands.figures.gap_report import report_gap

    print(report_gap(store, split, out, pairs, seed, projection))
