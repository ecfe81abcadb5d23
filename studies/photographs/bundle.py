"""Make the captioner that comes with the package, `prefixcap/photos/assets/captioner/`, from a checkpoint of training:

    python -m studies.photographs.bundle --ckpt runs/…/checkpoints/best.ckpt --scores runs/…/eval/…/metrics.json

Weights are rounded to float16. The captioner's own captions of the validation photographs say which similarity is low:
the 5th percentile of the cosines of caption and photograph, kept in `config.json`. The model card has the scores of the
evaluations that are named, with their intervals; the digests of all files are written beside them. Refused is what is
larger than 16 MB, reads another encoder than `photo`, or has a language model that is only named. Two minutes.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import prefixcap
from prefixcap import photos
from prefixcap.captioner import Captioner
from prefixcap.checkpoints.model_card import (
    INTERVALS,
    front_matter,
    parts_table,
    run_folder,
    score_table,
    training_table,
)
from prefixcap.checkpoints.pretrained import CARD
from prefixcap.errors import InputError
from prefixcap.store import FeatureStore
from prefixcap.store.named import open_training_store
from prefixcap.utils.files import atomic_write_folder, read_json, read_text

MOST_BYTES = 16_000_000
PERCENTILE = 5  # of similarities, below which one is low
RERANK = 5  # candidates of beam search, of which the caption is the one nearest to the photograph
LICENSE = "mit"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True, help="a checkpoint of training")
    parser.add_argument(
        "--scores", type=Path, nargs="*", default=[], metavar="METRICS.JSON", help="of evaluations, for the model card"
    )
    parser.add_argument("--store", type=Path, help="with the split val (default: the store that it was trained on)")
    parser.add_argument("--note", nargs="*", default=[], help="sentences for the card on how it was made")
    parser.add_argument("--out", type=Path, default=photos.CAPTIONER, help="the folder, which is replaced")
    given = parser.parse_args(arguments)
    try:
        print(bundle(prefixcap.load(given.ckpt), given.scores, given.store, given.note, given.out))
    except InputError as error:
        sys.exit(f"error: {error}")


def bundle(
    captioner: Captioner, scores: Sequence[Path] = (), store: Path | None = None, notes: Sequence[str] = (),
    out: Path = photos.CAPTIONER,
) -> str:  # fmt: skip
    """Write the folder.

    Args:
        captioner: as it was loaded from a checkpoint.
        scores: `metrics.json` of evaluations.
        store: of the validation photographs; None: the one that the captioner was trained on.
        notes: sentences for the model card on how it was made.
        out: the folder, which is replaced.

    Returns:
        What was written, in a few lines.

    Raises:
        InputError: the captioner cannot come with the package, see above; there are no validation photographs of its
            encoder; or a file cannot be read or written.
    """
    lm = captioner.language_model
    if captioner.encoder_identity.name != "photo":
        raise InputError(f"the captioner reads encoder '{captioner.encoder_identity.name}', not 'photo'")
    if lm.tuning != "full":
        raise InputError(f"the language model is {lm.tuning}: give a captioner that was trained with lm tuning full")
    evaluations = {file.parent.name: read_json(file) for file in scores}
    opened = FeatureStore(store) if store else open_training_store(captioner.trained_on, str(captioner.source))
    opened.require_encoder(captioner.encoder_identity)
    embeddings = torch.from_numpy(opened.split("val").embeddings[:]).float()  # (images, dim)

    captioner.rerank = RERANK
    captions = captioner.caption(embeddings, progress=True)
    cosines = [row[0] for row in captioner.similarities(embeddings, [[caption] for caption in captions])]
    captioner.low_similarity = round(float(np.percentile(cosines, PERCENTILE)), 3)
    lm.name = f"{lm.model.config.model_type}, {lm.model.config.num_hidden_layers} layers of {lm.dim}"  # not a path here
    card = model_card(captioner, evaluations, notes, len(embeddings))
    with atomic_write_folder(out) as temporary:
        temporary.mkdir(parents=True)
        (temporary / CARD).write_text(card, encoding="utf-8")  # which is kept
        captioner.save_pretrained(temporary, dtype="float16")
        photos.write_digests(temporary)
        size = sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file())
        if size > MOST_BYTES:
            raise InputError(
                f"the captioner takes {size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:g}: take a smaller model"
            )
        again = prefixcap.load(temporary).caption(embeddings)
    same = np.mean([before == after for before, after in zip(captions, again, strict=True)])
    return (
        f"{out}: {size / 1e6:.1f} MB; similarity on {len(embeddings):,} validation photographs {np.mean(cosines):.3f}, "
        f"low below {captioner.low_similarity:.3f}; {same:.1%} of their captions are the same as before rounding"
    )


def model_card(
    captioner: Captioner, scores: Mapping[str, dict[str, Any]], notes: Sequence[str], photographs: int
) -> str:
    """The model card of the captioner.

    Args:
        captioner: with its `low_similarity`.
        scores: content of `metrics.json`, by the name of the evaluation.
        notes: sentences on how it was made.
        photographs: how many of validation `low_similarity` is from.
    """
    run = run_folder(captioner.source)
    config = {} if run is None else yaml.safe_load(read_text(run / "config.yaml"))
    tables = [score_table(*item) for item in scores.items()]
    return read_text(Path(__file__).with_name("card.md")).format(
        front_matter=front_matter(captioner, photos.CARD, LICENSE, scores),
        title=photos.CARD,
        name=photos.NAME,
        parts=parts_table(captioner),
        training=training_table(captioner.trained_on, config),
        notes="".join(f"\n{note}\n" for note in notes),
        scores="\n\n".join([*tables, INTERVALS if tables else "None are known."]),
        low=captioner.low_similarity,
        photographs=photographs,
        percentile=PERCENTILE,
        rerank=RERANK,
        version=prefixcap.__version__,
    )


if __name__ == "__main__":
    main()
