"""Write a feature store as the files that clip-retrieval writes and reads.

    FOLDER/img_emb/img_emb_0.npy           (images, dim) float16, as the encoder gave them
    FOLDER/text_emb/text_emb_0.npy         likewise of the captions, if the store has them and each image has one
    FOLDER/metadata/metadata_0.parquet     image_path, caption (the first), captions, key (the id), split, domain

One number a part of the store, in its order. `python -m data_prep.import_features FOLDER` reads them again.
"""

import argparse
import sys
from pathlib import Path

from data_prep.interchange.exporting import export_features
from prefixcap.errors import InputError
from prefixcap.store import FeatureStore


def main() -> None:
    """The command; a mistake ends in one line and status 2."""
    parser = argparse.ArgumentParser(
        prog="prefixcap export-features",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("store", type=Path, metavar="STORE", help="the folder of a feature store")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new or empty folder")
    parser.add_argument("--split", metavar="NAME", help="write this split only")
    options = parser.parse_args()
    try:
        images, texts = export_features(options.store, options.folder, options.split)
        store = FeatureStore(options.store)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    kinds = "img_emb, text_emb and metadata" if texts else "img_emb and metadata"
    print(f"images: {images:,}; {kinds} in {options.folder}")
    print(f"image_path is relative to {store.image_root}; encoder {store.encoder.name}")


if __name__ == "__main__":
    main()
