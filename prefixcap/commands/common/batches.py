"""Captions of images that are read from files, batch by batch."""

import itertools
import sys
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from prefixcap.commands.common.formats import Row
from prefixcap.commands.common.inputs import read_ahead
from prefixcap.errors import InputError, spell_options

if TYPE_CHECKING:
    from prefixcap.captioner import Captioner

T = TypeVar("T")


def caption_batches(
    captioner: "Captioner",
    images: Sequence[str],
    batch_size: int,
    count: int,
    rerank: int,
    options: dict[str, Any],
    skipped: list[str],
    similarity: bool = False,
    prompts: Mapping[str, str] | None = None,
    done: Collection[str] = (),
    workers: int | None = None,
) -> Generator[list[Row]]:
    """Caption images, batch by batch, while the next images are read.

    Args:
        captioner: the captioner, whose own encoder reads the images.
        images: paths and URLs.
        batch_size: images per batch.
        count: captions per image.
        rerank: generate this many candidates per image, and keep those closest to it by the encoder, or by
            `consensus` in the options; 0: the decoder's best.
        options: further arguments of `Captioner.candidates`.
        skipped: a list that "NAME: reason" is appended to for each image that cannot be read.
        similarity: also give the cosines of captions and image.
        prompts: the text of each image that is read before its caption; None: the captioner's own.
        done: images that have captions: they are left out, and so are the random numbers that these were drawn with.
        workers: threads that read images; None: one a core, at most eight.

    Raises:
        InputError: `Captioner.candidates` raises it, or a batch does not fit into memory.
    """
    import torch
    from tqdm import tqdm

    from prefixcap.encoders import encode_feature
    from prefixcap.reranking import encode_for_reranking
    from prefixcap.utils.hardware import out_of_memory

    encoder, left = captioner.encoder(), [image for image in images if image not in done]
    candidates = max(count, rerank)
    bar = tqdm(total=len(images), initial=len(images) - len(left), unit=" images", delay=1)
    with bar, closing(read_ahead(left, encoder.preprocess, 2 * batch_size, workers)) as reading:
        for part in _batches(reading, batch_size, images, done, candidates, options):
            skipped += [str(pixels) for _, pixels in part if isinstance(pixels, InputError)]
            names = [name for name, pixels in part if not isinstance(pixels, InputError)]
            if names:
                pixels = torch.stack([pixels for _, pixels in part if not isinstance(pixels, InputError)])
                try:
                    embeddings, cosines = None, None
                    if rerank or similarity or captioner.prompts:
                        features, embeddings = encode_for_reranking(encoder, pixels, captioner.features)
                    else:
                        features = encode_feature(encoder, pixels, captioner.features)
                    own = None if prompts is None else [prompts[name] for name in names]
                    with spell_options("--set {}".format, "give"):
                        captions = captioner.candidates(
                            features, candidates, batch_size=len(names), by_similarity=rerank > 0,
                            embeddings=embeddings, prompts=own, **options,
                        )  # fmt: skip
                    captions = [texts[:count] for texts in captions]
                    if similarity and embeddings is not None:
                        cosines = captioner.similarities(embeddings, captions)
                except (RuntimeError, MemoryError) as error:
                    if not out_of_memory(error):
                        raise
                    raise InputError(f"out of memory: give a smaller --batch-size than {batch_size}") from error
                # On a terminal the bar makes room for the captions.
                with tqdm.external_write_mode(sys.stdout) if sys.stderr.isatty() else nullcontext():
                    low = captioner.low_similarity
                    yield [
                        Row(name, captions[row], None if cosines is None else cosines[row], low)
                        for row, name in enumerate(names)
                    ]
            bar.update(len(part))


def _batches(
    reading: Iterable[tuple[str, T]],
    size: int,
    images: Sequence[str],
    done: Collection[str],
    candidates: int,
    options: Mapping[str, Any],
) -> Iterator[list[tuple[str, T]]]:
    """Images that were read, in batches. Where captions are drawn with a seed, an image gets the same ones whichever
    images are done: a batch ends before one that is done, and the random numbers of that one are drawn and not used."""
    from prefixcap.decoding import GenerationLimits
    from prefixcap.decoding.stepwise import draw

    generator, before = options.get("seed"), dict[str, int]()  # how many that are done precede an image
    if generator is not None and done:
        before = dict(zip(images, itertools.accumulate(image in done for image in images), strict=True))
    passed = 0
    for number, run in itertools.groupby(reading, key=lambda item: before.get(item[0], 0)):
        for _ in range(passed, number):
            draw(candidates, options.get("max_tokens", GenerationLimits.max_tokens), generator)
        passed = number
        while part := list(itertools.islice(run, size)):
            yield part
