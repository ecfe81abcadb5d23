"""Time to retrieve the 4 nearest of 500,000 captions for images, over the time to caption them: at most 0.05.

For one image and for 32 at once; by comparing all captions, and by an index (IVF-PQ; needs faiss). The captions have
512 dimensions and lie in float16 on the disk, as in a store; they are drawn as in `memory_bank.py`. Captioning is beam
search with GPT-2 small's architecture and random weights, prefixes of 10 random vectors, 5 beams and 15 new tokens,
without the image encoder. They take turns; the median of the turns counts. Of the index also how many of the nearest
captions it finds.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from decode import BEAMS, PREFIX, random_lm
from memory_bank import ALIKE, DIM, TOPICS, captions_of, spread
from torch import Tensor

from prefixcap.decoding import decode
from prefixcap.features import EncoderIdentity
from prefixcap.language import LanguageModel
from prefixcap.prompts.datastore import Datastore
from prefixcap.prompts.index import CaptionIndex
from prefixcap.prompts.protocol import Item
from prefixcap.textonly.memory import MemoryBank

NEW_TOKENS, NEAREST = 15, 4
IMAGES = (1, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=500_000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--lists", type=int, default=2048, help="of the index")
    parser.add_argument("--bytes", type=int, default=64, help="of a caption in the index")
    parser.add_argument("--probes", type=int, default=32, help="lists that are looked into")
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    topics, scenes = spread(TOPICS, generator), spread(max(options.captions // ALIKE, TOPICS), generator)
    scenes = 0.5**0.5 * topics[torch.arange(len(scenes)) % TOPICS] + 0.25**0.5 * scenes
    with TemporaryDirectory() as folder:
        path = Path(folder) / "captions.npy"
        array = np.lib.format.open_memmap(path, "w+", np.float16, (options.captions, DIM))
        for start in range(0, options.captions, 10_000):
            rows = array[start : start + 10_000]
            rows[:] = captions_of(scenes, len(rows), generator).numpy()
        array.flush()
        texts = [f"caption {number}" for number in range(options.captions)]
        memory = MemoryBank(np.load(path, mmap_mode="r", allow_pickle=False), texts)
        identity = EncoderIdentity("random", "0" * 64, "none", DIM)
        datastores = {"exact": Datastore(memory, identity)}
        if importlib.util.find_spec("faiss") is not None:
            index = CaptionIndex.build(memory, "0" * 64, options.lists, options.bytes, options.probes, progress=True)
            datastores["index"] = Datastore(memory, identity, index=index)
        compare(datastores, captions_of(scenes, 512, generator), options.turns)


def compare(datastores: dict[str, Datastore], queries: Tensor, turns: int) -> None:
    """Print the times and ratios of each datastore, and how many of the nearest captions it finds."""
    lm = random_lm(torch.float32, torch.device("cpu"))
    for images in IMAGES:
        prefixes = torch.randn(images, PREFIX, lm.dim)
        asked = list(queries.split(images))
        calls: dict[str, Callable[[Tensor], object]] = {"captioning": partial(caption, lm, prefixes)}
        calls |= {name: partial(datastore.nearest, count=NEAREST) for name, datastore in datastores.items()}
        times: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(turns + 1):
            for name, call in calls.items():
                start = time.perf_counter()
                call(asked[turn % len(asked)])
                times[name].append(time.perf_counter() - start)
        base = median(times["captioning"][1:])  # the first turn warms up
        for name in datastores:
            seconds = median(times[name][1:])
            print(
                f"{name}, {images:2} image{'s' if images > 1 else ' '}   {1000 * seconds:8.1f} ms of "
                f"{1000 * base:8.1f} ms   {seconds / base:6.3f}   (at most 0.05)"
            )
    found = {name: texts_of(datastore.nearest(queries, NEAREST)) for name, datastore in datastores.items()}
    for name, sets in found.items():
        shares = [len(mine & exact) / NEAREST for mine, exact in zip(sets, found["exact"], strict=True)]
        print(f"{name}: {np.mean(shares):.3f} of the nearest {NEAREST}")


def texts_of(retrieved: list[list[Item]]) -> list[set[str]]:
    return [{item.text for item in items} for items in retrieved]


def caption(lm: LanguageModel, prefixes: Tensor, _: Tensor) -> object:
    """Beam search for a batch of prefixes."""
    return decode(lm, prefixes, "beam", beams=BEAMS, max_tokens=NEW_TOKENS, min_tokens=NEW_TOKENS)


if __name__ == "__main__":
    main()
