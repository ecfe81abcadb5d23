"""The two heads of the encoder "photo", trained anew: `python -m studies.photographs.heads --out heads.safetensors`.

EfficientNet-Lite2 and MiniLM stay as published. Their heads are trained as `prefixcap/training/heads.py` says, on the
training split of Flickr8k.

Features and captions are those of shared/data/flickr8k. Retrieval is printed of validation and test, beside that of
other heads: Recall@1, 5 and 10 of the photographs of a split among all their captions and back, and the mean
cosine of a photograph and its own captions. Options were chosen on the validation split (docs/methods/photographs.md).
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from prefixcap.encoders.heads import read_heads, write_heads
from prefixcap.errors import InputError
from prefixcap.photos import HEADS
from prefixcap.training.heads import Pairs, recalls, retrieval_row, train_heads
from prefixcap.utils.files import read_json

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "flickr8k", help="features, captions.json")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--beside", type=Path, default=HEADS, help="heads to compare with (default: the package's)")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--each", type=int, default=2, help="captions of each photograph in a batch")
    parser.add_argument("--batch", type=int, default=500, help="photographs")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--scale", type=float, default=15.0, help="of cosines in the softmax, at the start; learned")
    parser.add_argument("--seed", type=int, default=0, help="of weights, dropout and order")
    given = parser.parse_args(arguments)
    start = time.perf_counter()
    splits = read_splits(given.data)
    options = {name: vars(given)[name] for name in ("epochs", "batch", "each", "learning_rate", "scale", "seed")}
    write_heads(given.out, train_heads(splits["train"], **options))
    print(f"{given.out}, {given.out.stat().st_size / 1e6:.1f} MB, after {time.perf_counter() - start:.0f} s")
    for name, file in {"written": given.out, "beside": given.beside}.items():
        for split in ("val", "test"):
            print(retrieval_row(f"{name}, {split}", recalls(splits[split], *read_heads(file, name))), flush=True)


def read_splits(folder: Path) -> dict[str, Pairs]:
    """The splits of `captions.json` with their features, as the networks give them.

    Raises:
        InputError: a file is missing, or their rows do not fit together.
    """
    listed = read_json(folder / "captions.json")
    try:
        arrays = [np.load(folder / f"{kind}_features.npy", allow_pickle=False) for kind in ("image", "caption")]
    except FileNotFoundError as error:
        raise InputError(f"{error.filename}: no such file; --data names the folder of Flickr8k's features") from error
    images, captions = (torch.from_numpy(array).float() for array in arrays)
    counts = {split: [len(each) for each in files.values()] for split, files in listed.items()}
    count = sum(map(sum, counts.values()))
    if len(images) != sum(map(len, counts.values())) or len(captions) != count:
        raise InputError(f"{folder}: {len(images)} and {len(captions)} features for {count} captions in captions.json")
    parts = zip(
        images.split([len(each) for each in counts.values()]),
        captions.split([sum(each) for each in counts.values()]),
        strict=True,
    )
    return {
        split: Pairs(*part, torch.arange(len(each)).repeat_interleave(torch.tensor(each)))
        for (split, each), part in zip(counts.items(), parts, strict=True)
    }


if __name__ == "__main__":
    main()
