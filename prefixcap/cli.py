"""The `prefixcap` command."""

import argparse
import sys

from prefixcap.errors import InputError


def main() -> None:
    """Caption images from the command line; a mistake ends in one line and status 2."""
    parser = argparse.ArgumentParser(prog="prefixcap", description="Captions for images, by CLIP and a language model.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    caption = commands.add_parser("caption", help="print a caption for each image")
    caption.add_argument("images", nargs="+", metavar="IMAGE", help="an image file")
    caption.add_argument("--ckpt", required=True, help="a checkpoint, or a folder that save_pretrained wrote")
    caption.add_argument("--decode", default="beam", help="greedy or beam (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        print_captions(arguments.images, arguments.ckpt, arguments.decode)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def print_captions(images: list[str], checkpoint: str, decode: str) -> None:
    """Print `image<tab>caption` for each image. Raises InputError as `prefixcap.load` and `Captioner.caption` do."""
    from prefixcap.captioner import load  # slow to import: --help should not wait for it

    captioner = load(checkpoint)
    for image, caption in zip(images, captioner.caption(images, decode), strict=True):
        print(f"{image}\t{caption}")


if __name__ == "__main__":
    main()
