"""Make a feature store from embeddings that another tool computed.

A SOURCE is one of:

- a folder with img_emb/*.npy, metadata/*.parquet and optionally text_emb/*.npy, as clip-retrieval writes it
- a .npy file, or a .npz file (the array `embeddings`, if it has several), with --captions
- a .pkl or .pt file of ClipCap; code pickled in it is not run

SPLIT=SOURCE puts its images into that split. An interrupted import continues when the same command is given again.
"""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """  prefixcap import-features laion_folder --store stores/laion \\
      --encoder clip:ViT-L/14 --val-share 0.01

  prefixcap import-features train=a.pkl val=b.pkl --store stores/coco \\
      --encoder clip:ViT-B/32

  prefixcap import-features rows.npy --captions rows.json \\
      --store stores/rows --encoder clip:ViT-B/32"""


def main(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE", help="Files or folders, or SPLIT=PATH.")],
    store: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder of the feature store.")],
    encoder: Annotated[
        str, typer.Option(metavar="NAME", help="The encoder that computed the embeddings, e.g. clip:ViT-B/32.")
    ],
    captions: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="For each .npy or .npz file, in order: a JSON list with an entry for each row, a caption, a list of "
            "captions, or an object with `caption` or `captions` and optionally `image_id`, `file` and `split`.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="The split of each SOURCE without SPLIT=.", show_default=False)
    ] = None,
    val_share: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of the images without a split for `val`, 0.0 to 1.0.")
    ] = 0.0,
    test_share: Annotated[
        float, typer.Option(metavar="SHARE", help="Likewise for `test`; the rest goes to `train`.")
    ] = 0.0,
    image_root: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where the image files are (default: what the source says).", show_default=False
        ),
    ] = None,
) -> None:
    """Write the store. Raises InputError as `import_features` does."""
    from data_prep.interchange.importing import import_features, require_source

    split_sources = [_split_and_path(source, split) for source in sources]
    for _, path in split_sources:
        require_source(path)
    from prefixcap.encoders import load_encoder  # imports torch: after the checks

    identity = load_encoder(encoder).identity
    written = import_features(split_sources, store, identity, captions or [], image_root, val_share, test_share)
    _print_summary(store, written)


def _split_and_path(source: str, split: str | None) -> tuple[str | None, Path]:
    name, equals, path = source.partition("=")
    if not equals or not name or "/" in name or Path(source).exists():
        return split, Path(source)
    return name, Path(path)


def _print_summary(path: Path, written: int) -> None:
    from data_prep.stores import print_store
    from prefixcap.store import FeatureStore

    store = FeatureStore(path)
    images = sum(store.splits.values())
    if not written:
        print("the store was complete already")
    elif written < images:
        print(f"continued after {images - written:,} images that were there already")
    print_store(store, "images")
    if store.made_with["normalized"]:
        print("embeddings are scaled to length one: train with model.normalize_embeddings=true")
