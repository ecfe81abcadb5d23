"""All metrics on two processes that share the images unevenly, against one process that has them all."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torchmetrics import Metric

from prefixcap.errors import InputError
from prefixcap.language import load_language_model
from prefixcap.metrics.caption_metrics import BLEU, ROUGEL, CIDEr
from prefixcap.metrics.clip_score import CLIPScore, RefCLIPScore
from prefixcap.metrics.diversity import Diversity
from prefixcap.metrics.perplexity import Perplexity
from tests.processes import start

CAPTIONS = [
    "A red circle in a meadow.",
    "A plain blue square at the top.",
    "caf\u00e9 \U0001f600",
    "",
    "A red circle at the top.",
    "There is a large striped star in pink on the left by the sea.",
    "a plain blue square at the top",
]
REFERENCES = [
    ["A red ring in a meadow.", "A circle, red and plain"],
    ["A blue square.", "A plain square at the top", "At the top, a square of blue"],
    ["caf\u00e9 \U0001f600 au lait"],
    ["A green heart in the snow"],
    ["At the top, a red circle", "A circle of red"],
    ["A pink star, striped and large, by the sea on the left"],
    ["A dog", "Two cats at the top of a plain blue square"],
]
GENERATOR = torch.Generator().manual_seed(0)
IMAGE_EMBEDDINGS, CAPTION_EMBEDDINGS = (torch.randn(7, 8, generator=GENERATOR) for _ in range(2))
REFERENCE_EMBEDDINGS = [torch.randn(len(texts), 8, generator=GENERATOR) for texts in REFERENCES]


class Case(NamedTuple):
    make: Callable[[], Metric]
    arguments: tuple[Any, ...]  # of update, for all images


CASES = {
    "CLIPScore": Case(CLIPScore, (IMAGE_EMBEDDINGS, CAPTION_EMBEDDINGS)),
    "RefCLIPScore": Case(RefCLIPScore, (IMAGE_EMBEDDINGS, CAPTION_EMBEDDINGS, REFERENCE_EMBEDDINGS)),
    "Diversity": Case(lambda: Diversity(["A blue square", "a red circle in a meadow"]), (CAPTIONS,)),
    "Perplexity": Case(lambda: Perplexity(load_language_model("demo")), (CAPTIONS,)),
    "BLEU": Case(BLEU, (CAPTIONS, REFERENCES)),
    "ROUGE-L": Case(ROUGEL, (CAPTIONS, REFERENCES)),
    "CIDEr": Case(CIDEr, (CAPTIONS, REFERENCES)),
}
# For each rank the images of its updates.
SHARES = {
    "uneven": ([slice(0, 2), slice(2, 5)], [slice(5, 7)]),
    "nothing for the second": ([slice(0, 3), slice(3, 7)], []),
    "nothing for the first": ([], [slice(0, 7)]),
}


def add(metric: Metric, arguments: tuple[Any, ...], images: slice) -> None:
    metric.update(*(argument[images] for argument in arguments))


def work(rank: int, folder: Path) -> None:
    warnings.simplefilter("ignore", UserWarning)  # that a rank computes before it has updated: it was given nothing
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    found: dict[tuple[str, str], Any] = {}
    for name, case in CASES.items():
        metric = case.make()
        with pytest.raises(InputError, match=f"{name.replace('-', '')} has no captions"):
            metric.compute()  # on both ranks, of nothing
        metric = case.make()
        for share, updates in SHARES.items():
            metric.reset()
            for images in updates[rank]:
                add(metric, case.arguments, images)
            found[name, share] = metric.compute()
            add(metric, case.arguments, slice(0, 2))  # what was gathered is not counted as this rank's own
            found[name, f"{share}, and more"] = metric.compute()
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_give_what_one_process_gives(tmp_path: Path) -> None:
    processes = [start(work, rank, tmp_path) for rank in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    for name, case in CASES.items():
        alone = case.make()
        alone.update(*case.arguments)
        everything = alone.compute()
        for _ in range(2):
            add(alone, case.arguments, slice(0, 2))
        with_more = alone.compute()
        for share in SHARES:
            torch.testing.assert_close(first[name, share], everything, rtol=1e-5, atol=0)
            torch.testing.assert_close(first[name, f"{share}, and more"], with_more, rtol=1e-5, atol=0)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
