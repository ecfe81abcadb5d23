"""Captions of images that are read from files, batch by batch."""

import itertools
import sys
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prefixcap.commands.common.formats import Row
from prefixcap.commands.common.inputs import read_ahead
from prefixcap.commands.common.options import load_captioner
from prefixcap.errors import InputError, spell_options

if TYPE_CHECKING:
    from torch import Tensor


class Batch(NamedTuple):
    """Images that are captioned together.

    Attributes:
        images: paths and URLs.
        before: how many of the images that the command names precede them.
        prompts: the text of each that is read before its caption; None: the captioner's own.
    """

    images: list[str]
    before: int = 0
    prompts: list[str] | None = None


class Captioned(NamedTuple):
    """What became of a batch.

    Attributes:
        rows: the images that can be read, with their captions.
        skipped: "NAME: reason" of each of the others.
    """

    rows: list[Row]
    skipped: list[str]


def plan_batches(
    images: Sequence[str],
    size: int,
    done: Collection[str] = (),
    has_seed: bool = False,
    prompts: Mapping[str, str] | None = None,
) -> list[Batch]:
    """The images that have no captions yet, in batches.

    Args:
        images: all, in their order.
        size: images per batch.
        done: those that have captions.
        has_seed: captions are drawn: a batch ends before an image that is done, whose random numbers are not used.
        prompts: the text of each image that is read before its caption; None: the captioner's own.
    """
    left = [number for number, image in enumerate(images) if image not in done]

    def done_before(place: tuple[int, int]) -> int:
        return place[1] - place[0] if has_seed else 0

    batches = []
    for _, run in itertools.groupby(enumerate(left), done_before):
        while part := [number for _, number in itertools.islice(run, size)]:
            names = [images[number] for number in part]
            texts = None if prompts is None else [prompts[name] for name in names]
            batches.append(Batch(names, part[0], texts))
    return batches


class BatchCaptioner:
    """A captioner, and how it captions images.

    Args:
        ckpt, device, tokenizer, precision: as `load_captioner` takes them.
        decode: name of a decoder.
        options: those of the decoder; a seed among them gives each image random numbers of its own, whichever images
            are done or cannot be read.
        count: captions per image.
        rerank: generate this many candidates per image, and keep those closest to it by the encoder, or by `consensus`;
            0: the decoder's best; None: as many as the captioner asks for.
        similarity: also give the cosines of captions and image; None: if the captioner knows which is low.
        prompt: the beginning of every caption.
        forbid: words that no caption has.
        force: words that every caption has.
        datastore: a feature store to retrieve captions from.
        consensus: a feature store with captions that those to keep agree with.
        batch_size: the most images of a batch.
        workers: threads that read images; None: one a core, at most eight.

    Raises:
        InputError: the captioner cannot be loaded, or an option does not fit it.
    """

    def __init__(
        self,
        ckpt: str | None,
        device: str,
        tokenizer: str | None,
        precision: Mapping[str, Any],
        decode: str,
        options: Mapping[str, Any],
        count: int,
        rerank: int | None,
        similarity: bool | None,
        prompt: str,
        forbid: Sequence[str],
        force: Sequence[str],
        datastore: Path | None,
        consensus: Path | None,
        batch_size: int,
        workers: int | None,
    ) -> None:
        from prefixcap.decoding import random_generator
        from prefixcap.language.tokens import bad_words_ids, force_words_ids
        from prefixcap.reranking import default_candidates

        captioner = self.captioner = load_captioner(ckpt, device, tokenizer, **precision)
        if datastore:
            captioner.use_datastore(datastore)
        self.rerank = default_candidates(captioner.rerank, decode, options) if rerank is None else rerank
        self.options = {**options, "decode": decode, "prompt": prompt}
        if consensus:
            from prefixcap.consensus import Consensus
            from prefixcap.prompts.datastore import Datastore

            if self.rerank < 2:
                raise InputError("--consensus chooses among candidates: give --rerank 20, and --set beams=20")
            self.options["consensus"] = Consensus(Datastore.open(str(consensus)))
        if forbid:
            self.options["bad_words_ids"] = bad_words_ids(captioner.language_model.tokenizer, forbid)
        if force:
            self.options["force_words_ids"] = force_words_ids(captioner.language_model.tokenizer, force, prompt)
        self.similarity = captioner.low_similarity is not None if similarity is None else similarity
        self.generator = random_generator(options.get("seed"))
        self.drawn = 0  # images that the generator drew for
        self.count, self.batch_size, self.workers = count, batch_size, workers

    def caption(self, batches: Sequence[Batch]) -> Generator[Captioned]:
        """Caption batches, one after the other, while the next images are read.

        Raises:
            InputError: `Captioner.candidates` raises it, or a batch does not fit into memory.
        """
        images = [image for batch in batches for image in batch.images]
        ahead = 2 * self.batch_size
        with closing(read_ahead(images, self.captioner.encoder().preprocess, ahead, self.workers)) as reading:
            for batch in batches:
                read = [result for _, result in itertools.islice(reading, len(batch.images))]
                skipped = [str(result) for result in read if isinstance(result, InputError)]
                yield Captioned(self._rows(batch, read) if len(skipped) < len(read) else [], skipped)

    def _rows(self, batch: Batch, read: "Sequence[Tensor | InputError]") -> list[Row]:
        """The captions of the images of a batch that could be read, of which there are some."""
        import torch

        from prefixcap.utils.hardware import out_of_memory

        readable = {row: result for row, result in enumerate(read) if not isinstance(result, InputError)}
        if self.generator is not None:  # a blank image draws in place of one that cannot be read
            self._draw_until(batch.before)
            blank = torch.zeros_like(next(iter(readable.values())))
            chosen, pixels = list(range(len(read))), [readable.get(row, blank) for row in range(len(read))]
        else:
            chosen, pixels = list(readable), list(readable.values())
        prompts = None if batch.prompts is None else [batch.prompts[row] for row in chosen]
        try:
            captions, cosines = self._captions(torch.stack(pixels), prompts)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise InputError(f"out of memory: give a smaller --batch-size than {self.batch_size}") from error
        self.drawn += len(chosen)
        low = self.captioner.low_similarity
        return [
            Row(batch.images[row], texts, values, low)
            for row, texts, values in zip(chosen, captions, cosines, strict=True)
            if row in readable
        ]

    def _captions(
        self, pixels: "Tensor", prompts: list[str] | None
    ) -> tuple[list[list[str]], Sequence[list[float] | None]]:
        """The captions of images, and their cosines."""
        from prefixcap.encoders import encode_feature
        from prefixcap.reranking import encode_for_reranking

        captioner, embeddings = self.captioner, None
        if self.rerank or self.similarity or captioner.prompts:
            features, embeddings = encode_for_reranking(captioner.encoder(), pixels, captioner.features)
        else:
            features = encode_feature(captioner.encoder(), pixels, captioner.features)
        with spell_options("--set {}".format, "give"):
            captions = captioner.candidates(
                features, max(self.count, self.rerank), batch_size=len(features), by_similarity=self.rerank > 0,
                embeddings=embeddings, prompts=prompts, **self.options | {"seed": self.generator},
            )  # fmt: skip
        captions = [texts[: self.count] for texts in captions]
        if embeddings is None or not self.similarity:
            return captions, [None] * len(captions)
        return captions, captioner.similarities(embeddings, captions)

    def _draw_until(self, image: int) -> None:
        """Draw the random numbers of the images between the last that were captioned and this one, and use none."""
        from prefixcap.decoding import GenerationLimits
        from prefixcap.decoding.stepwise import draw

        assert self.generator is not None
        if image < self.drawn:  # it was another worker's
            self.generator.manual_seed(self.generator.initial_seed())
            self.drawn = 0
        for _ in range(image - self.drawn):
            max_tokens = self.options.get("max_tokens", GenerationLimits.max_tokens)
            draw(max(self.count, self.rerank), max_tokens, self.generator)
        self.drawn = image


def with_bar(results: Generator[Captioned], images: int, done: int) -> Generator[Captioned]:
    """The same results; on stderr a bar shows how many images they are for, after those that are done."""
    from tqdm import tqdm

    with closing(results), tqdm(total=images, initial=done, unit=" images", delay=1) as bar:
        for result in results:
            # On a terminal the bar makes room for captions.
            with tqdm.external_write_mode(sys.stderr) if sys.stderr.isatty() else nullcontext():
                yield result
            bar.update(len(result.rows) + len(result.skipped))
