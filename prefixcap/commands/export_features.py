"""Write a feature store as files that clip-retrieval reads.

FOLDER then has these files, numbered by the parts of the store:

  img_emb/img_emb_0.npy        float16 (images, dim), as the encoder returned
                               them
  text_emb/text_emb_0.npy      likewise of the captions, if the store has them
                               and each image has one
  metadata/metadata_0.parquet  image_path, caption (the first), captions, key
                               (the id), split, domain

`prefixcap import-features FOLDER` reads them back.
"""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """  prefixcap export-features stores/coco-clip-vit-b-32 clip_retrieval

  prefixcap export-features stores/coco-clip-vit-b-32 val --split val"""


def main(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="The folder of a feature store.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new or empty folder.")],
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Only this split.", show_default=False)] = None,
) -> None:
    """Write the files. Raises InputError as `export_features` does."""
    from data_prep.interchange.exporting import export_features
    from prefixcap.store import FeatureStore

    images, texts = export_features(store, folder, split)
    opened = FeatureStore(store)
    kinds = "img_emb, text_emb and metadata" if texts else "img_emb and metadata"
    print(f"images: {images:,}; {kinds} in {folder}")
    print(f"image_path is relative to {opened.image_root}; encoder {opened.encoder.name}")
