"""What limits a captioner, its encoder's embeddings of photographs or the rest: `python -m studies.photographs.limits`.

The captioner reads, in place of a photograph's embedding, that of one of its captions by people, and the mean of two
such. Captions and photographs share a space, so that these stand for a photograph that the encoder understands
perfectly: what is gained by them is lost in the encoder, and what people are ahead of them in the mapper and the
language model. Another embedding is the photograph's projection onto captions of the training split (DeCap).

All are scored against the same references, the photograph's captions but the first two.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import prefixcap
from prefixcap.captioner import Captioner
from prefixcap.commands.common.steps import markdown
from prefixcap.errors import InputError
from prefixcap.evaluation import evaluate
from prefixcap.store import FeatureStore, StoreSplit
from prefixcap.textonly.memory import MemoryBank
from studies.photographs.rows import FLICKR8K
from studies.photographs.scores import Value

GIVEN = 2  # captions of a photograph that are read, and are no references
TEMPERATURE = 0.04  # of the projection
METRICS, COLUMNS = ("BLEU", "METEOR", "CIDEr"), ("BLEU-4", "METEOR", "CIDEr")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True, help="a captioner that reads embeddings of the store's encoder")
    parser.add_argument("--store", type=Path, default=FLICKR8K, help="with images and captions (default: %(default)s)")
    parser.add_argument("--split", default="val", help="of the photographs (default: %(default)s)")
    given = parser.parse_args(arguments)
    try:
        print(limits(prefixcap.load(given.ckpt), FeatureStore(given.store), given.split))
    except InputError as error:
        sys.exit(f"error: {error}")


def limits(captioner: Captioner, store: FeatureStore, split: str) -> str:
    """The table, in Markdown; ±: half of a 95% interval by bootstrap over photographs.

    Raises:
        InputError: the store is of another encoder, or a photograph has fewer than three captions.
    """
    store.require_encoder(captioner.encoder_identity)
    photographs, memory = store.split(split), MemoryBank.from_store(store.split("train"))
    texts = {image: list(captions) for image, captions in photographs.references().items()}
    if min(map(len, texts.values())) <= GIVEN:
        raise InputError(f"{split}: each photograph needs more than {GIVEN} captions")
    references = {image: captions[GIVEN:] for image, captions in texts.items()}
    images = torch.from_numpy(photographs.embeddings[:].astype(np.float32))  # (images, dim)
    read = {
        "the photograph": images,
        "the photograph, projected onto training captions": memory.project(images, TEMPERATURE),
        **caption_embeddings(photographs),
    }
    captions = {name: captioner.caption(embeddings, rerank=0, progress=True) for name, embeddings in read.items()}
    captions["a person's caption itself"] = [own[0] for own in texts.values()]
    rows = [["what is read", *COLUMNS, "different captions"]]
    for name, written in captions.items():
        evaluation = evaluate(dict(zip(texts, written, strict=True)), references, list(METRICS))
        scores, intervals = evaluation.scores.corpus, evaluation.intervals
        cells = [str(Value(scores[column], *intervals[column])) for column in COLUMNS]
        rows.append([name, *cells, f"{len(set(written)):,}"])
    return markdown(rows)


def caption_embeddings(split: StoreSplit) -> dict[str, Tensor]:
    """(images, dim) of each image's first caption, and the mean of its first two, each of length one."""
    embeddings = F.normalize(torch.from_numpy(split.feature("captions/embedding")[:].astype(np.float32)), dim=-1)
    first = torch.from_numpy(np.searchsorted(split.caption_images[:], np.arange(len(split))))  # row of an image's first
    return {
        "one of its captions by people": embeddings[first],
        f"the mean of {GIVEN}": torch.stack([embeddings[first + number] for number in range(GIVEN)]).mean(dim=0),
    }


if __name__ == "__main__":
    main()
