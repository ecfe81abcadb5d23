"""Make a feature store of embeddings that another tool made.

    python -m data_prep.import_features laion_folder --store stores/laion --encoder clip:ViT-L/14 --val-share 0.01
    python -m data_prep.import_features train=a.pkl val=b.pkl --store stores/coco --encoder clip:ViT-B/32
    python -m data_prep.import_features rows.npy --captions rows.json --store stores/rows --encoder clip:ViT-B/32

A SOURCE is one of

    a folder with img_emb/*.npy, metadata/*.parquet and, if wanted, text_emb/*.npy, as clip-retrieval writes it
    a .npy or .npz file (of several arrays, `embeddings`), with --captions
    a .pkl or .pt file of ClipCap; code that is pickled in it is not run

and may have a split written before it, as in val=b.pkl. An import that was stopped goes on where it was when the same
command is given again.
"""

import argparse
import sys
from pathlib import Path

from data_prep.interchange.importing import import_features
from data_prep.stores import print_store
from prefixcap.encoders import load_encoder
from prefixcap.errors import InputError
from prefixcap.store import FeatureStore


def main() -> None:
    """The command; a mistake ends in one line and status 2."""
    parser = argparse.ArgumentParser(
        prog="prefixcap import-features",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="a file or folder, or SPLIT=PATH")
    parser.add_argument("--store", required=True, type=Path, help="the feature store's folder")
    parser.add_argument("--encoder", required=True, metavar="NAME", help="who made the embeddings, e.g. clip:ViT-B/32")
    parser.add_argument(
        "--captions",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="for a .npy or .npz file: a JSON list with an entry a row, which is a caption, a list of captions, or an "
        "object with `caption` or `captions` and, if wanted, `image_id`, `file` and `split`",
    )
    parser.add_argument("--split", metavar="NAME", help="of each SOURCE that has none written before it")
    parser.add_argument(
        "--val-share", default=0.0, type=float, metavar="SHARE", help="of the images without a split, 0.0 to 1.0"
    )
    parser.add_argument("--test-share", default=0.0, type=float, metavar="SHARE", help="likewise; the rest is train")
    parser.add_argument("--image-root", type=Path, metavar="FOLDER", help="of the image files (default: the source's)")
    options = parser.parse_args()
    try:
        written = import_features(
            [_split_and_path(source, options.split) for source in options.sources],
            options.store,
            load_encoder(options.encoder).identity,
            options.captions,
            options.image_root,
            options.val_share,
            options.test_share,
        )
        _print_summary(options.store, written)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _split_and_path(source: str, split: str | None) -> tuple[str | None, Path]:
    name, equals, path = source.partition("=")
    if not equals or not name or "/" in name or Path(source).exists():
        return split, Path(source)
    return name, Path(path)


def _print_summary(path: Path, written: int) -> None:
    store = FeatureStore(path)
    images = sum(store.splits.values())
    if not written:
        print("the store was complete already")
    elif written < images:
        print(f"went on after {images - written:,} images that were there already")
    print_store(store, "images")
    if store.made_with["normalized"]:
        print("embeddings are scaled to length one: train with model.normalize_embeddings=true")


if __name__ == "__main__":
    main()
