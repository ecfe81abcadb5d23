"""The `prefixcap` command."""

import argparse
import sys
from pathlib import Path

from prefixcap.errors import InputError


def main() -> None:
    """Caption images from the command line; a mistake ends in one line and status 2."""
    parser = argparse.ArgumentParser(prog="prefixcap", description="Captions for images, by CLIP and a language model.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    caption = commands.add_parser("caption", help="print a caption for each image")
    caption.add_argument("images", nargs="+", metavar="IMAGE", help="an image file")
    caption.add_argument(
        "--ckpt",
        required=True,
        help="a checkpoint, a folder that save_pretrained wrote, or weights that ClipCap published",
    )
    caption.add_argument(
        "--decode", default="beam",
        help="greedy, beam, nucleus, contrastive, clipcap or clipcap_greedy (default: %(default)s)",
    )  # fmt: skip
    caption.add_argument("--count", type=int, default=1, help="captions for each image (beam, nucleus and clipcap)")
    caption.add_argument("--rerank", action="store_true", help="put the caption first that CLIP finds closest")
    caption.add_argument("--prompt", default="", help='how every caption begins, e.g. "a photo of"')
    caption.add_argument("--tokenizer", metavar="FOLDER", help="GPT-2's, for weights that ClipCap published")
    caption.set_defaults(run=print_captions)
    setup = commands.add_parser("setup-spice", help="get the parser that the SPICE metric needs")
    setup.add_argument(
        "--from", dest="source", type=Path, metavar="FOLDER",
        help="a folder with stanford-corenlp-3.6.0.jar and stanford-corenlp-3.6.0-models.jar (default: fetch them)",
    )  # fmt: skip
    setup.set_defaults(run=lambda given: prepare_spice(given.source))
    sums = commands.add_parser(
        "arithmetic", help="put sums and differences of images and texts into words, without training (ZeroCap)",
        epilog="""prefixcap arithmetic "img:king.jpg - img:man.jpg + txt:'a woman'" """,
    )  # fmt: skip
    sums.add_argument("expression", help="of img:PATH, txt:'TEXT' and emb:STORE#ID, with weights (0.5*…) and brackets")
    sums.add_argument("--encoder", default="clip:ViT-B/32", help="a CLIP (default: %(default)s)")
    sums.add_argument("--lm", default="gpt2-medium", help="a language model, by name or folder (default: %(default)s)")
    sums.add_argument("--prompt", default="Image of a", help="what ZeroCap goes on from (default: %(default)s)")
    sums.add_argument("--ckpt", help="a captioner: its encoder is taken, and it writes a second caption by its prefix")
    sums.set_defaults(run=print_arithmetic)
    gap = commands.add_parser("gap", help="measure the gap between the embeddings of images and of their captions")
    gap.add_argument("store", help="a feature store made with features=[image,regions,caption]: a folder or a URL")
    gap.add_argument("--split", default="val", help="which images (default: %(default)s)")
    gap.add_argument("--out", type=Path, metavar="FOLDER", help="for numbers and figures (default: below runs/gap)")
    gap.add_argument("--pairs", type=int, metavar="N", help="draw so many pairs of image and caption (default: all)")
    gap.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    gap.add_argument("--projection", default="pca", help="pca, or umap, which needs umap-learn (default: %(default)s)")
    gap.set_defaults(run=print_gap)
    arguments = parser.parse_args()
    try:
        arguments.run(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def print_captions(given: argparse.Namespace) -> None:
    """Print `image<tab>caption` for each caption. Raises InputError as `prefixcap.load` and `Captioner.candidates`."""
    from prefixcap.checkpoints import load  # slow to import: --help should not wait for it

    captioner = load(given.ckpt, tokenizer=given.tokenizer)
    found = captioner.candidates(
        given.images, given.count, given.decode, by_similarity=given.rerank, prompt=given.prompt
    )
    for image, captions in zip(given.images, found, strict=True):
        for caption in captions:
            print(f"{image}\t{caption}")


def print_arithmetic(given: argparse.Namespace) -> None:
    """Print what an expression comes to, in ZeroCap's words and a captioner's. Raises InputError as `arithmetic`."""
    from prefixcap.checkpoints import load  # slow to import, too
    from prefixcap.encoders import load_encoder
    from prefixcap.language import load_language_model
    from prefixcap.zeroshot.arithmetic import arithmetic, encoder_of, parse
    from prefixcap.zeroshot.zerocap import ZeroCap

    parse(given.expression)  # before models are loaded
    captioner = load(given.ckpt) if given.ckpt else None
    encoder = encoder_of(captioner) if captioner is not None else load_encoder(given.encoder)
    lm = load_language_model(given.lm)
    print(arithmetic(given.expression, ZeroCap(encoder, lm, prompt=given.prompt, end_factor=1.06, end_from=1)))
    if captioner is not None:
        print(f"{given.ckpt}: {arithmetic(given.expression, captioner)}")


def prepare_spice(source: Path | None) -> None:
    """Get what SPICE needs, and say where it is. Raises InputError as `setup_spice` does."""
    from prefixcap.metrics.spice_setup import setup_spice, spice_folder  # slow to import, too

    setup_spice(source)
    print(f"SPICE is set up in {spice_folder()}")


def print_gap(given: argparse.Namespace) -> None:
    """Print the gap in a store. Raises InputError as `report_gap` does."""
    from prefixcap.textonly.gap_report import report_gap  # slow to import, too

    print(report_gap(given.store, given.split, given.out, given.pairs, given.seed, given.projection))


if __name__ == "__main__":
    main()
