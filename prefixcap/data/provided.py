"""The prompts of training, by a provider: what it gives for images, or what captions say in their place.

An image's prompt is the one that it gets when it is captioned, but that none of its own captions is retrieved (Ramos et
al. 2023, "SmallCap"). In training on text a caption stands in for its image: entities are those that it
names, some of them left out, others in each epoch (Fei et al. 2023, "ViECap"); captions are retrieved by
its own embedding with noise added, as the captioner reads it (Lee et al. 2024, "IFCap"), and never itself.

Shapes: N rows of a split, D width of an embedding.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tqdm import tqdm

from prefixcap.features import Feature
from prefixcap.noise import gaussian_noise
from prefixcap.prompts import Prompt, PromptProvider
from prefixcap.store import StoreSplit

_BLOCK = 1 << 12  # images whose prompts are made together


@runtime_checkable
class EntityProvider(PromptProvider, Protocol):
    """A provider that knows which entities a caption names."""

    def of_captions(
        self, captions: Sequence[str], masked: float, generator: torch.Generator | None = None
    ) -> list[Prompt]:
        """A prompt for each caption, without some of its entities."""
        ...


class ProvidedPrompts:
    """Prompts of a store's images or, in training on text, of its captions; see `PromptFunction`.

    Args:
        provider: makes them.
        from_text: rows are captions.
        masked: the probability, 0.0-1.0, of leaving an entity of a caption out; only in training on text.
        noise: the variance of the noise on the unit-length embedding of a caption by which others are retrieved; only
            in training on text.
        seed: of what is drawn.
    """

    def __init__(
        self, provider: PromptProvider, from_text: bool, masked: float = 0.0, noise: float = 0.0, seed: int = 0
    ) -> None:
        self.provider, self.from_text, self.masked, self.noise, self.seed = provider, from_text, masked, noise, seed
        self._of_images: dict[str, list[str]] = {}  # by split: they are the same in all epochs

    def __call__(self, split: StoreSplit, rows: NDArray[np.int64], epoch: int | None, /) -> list[str]:
        """The prompts of N rows of a split, in an epoch; None: with nothing drawn at random."""
        if not self.from_text:
            if split.name not in self._of_images:
                self._of_images[split.name] = self._all_images(split)
            texts = self._of_images[split.name]
            return [texts[row] for row in rows]
        captions: list[str] = list(split.captions[rows])
        if isinstance(self.provider, EntityProvider):
            return self._of_captions(self.provider, captions, rows, epoch)
        embeddings = F.normalize(torch.from_numpy(split.feature(Feature.CAPTION)[rows]).float(), dim=-1)  # (N, D)
        if epoch is not None and self.noise:
            drawn = zip(embeddings, rows.tolist(), strict=True)
            embeddings = torch.stack([gaussian_noise(e, self.noise, self._generator(epoch, row)) for e, row in drawn])
        own = [[caption] for caption in captions]
        return [prompt.text for prompt in self.provider.prompts(embeddings, leave_out=own)]

    def _of_captions(
        self, provider: EntityProvider, captions: Sequence[str], rows: NDArray[np.int64], epoch: int | None
    ) -> list[str]:
        """The prompts of the entities that N captions name."""
        masked = 0.0 if epoch is None else self.masked
        pairs = zip(captions, rows.tolist(), strict=True)
        return [provider.of_captions([text], masked, self._generator(epoch or 0, row))[0].text for text, row in pairs]

    def _all_images(self, split: StoreSplit) -> list[str]:
        """The prompts of a split's images, which are the same in all epochs."""
        references = split.references()
        texts: list[str] = []
        with tqdm(total=len(split), desc=f"prompts of {split.name}", unit=" images", delay=1) as bar:
            for start in range(0, len(split), _BLOCK):
                ids = split.ids[start : start + _BLOCK]
                embeddings = torch.from_numpy(split.embeddings[start : start + _BLOCK])  # (block, D)
                own = [references[image] for image in ids]
                texts += [prompt.text for prompt in self.provider.prompts(embeddings, leave_out=own)]
                bar.update(len(ids))
        return texts

    def _generator(self, epoch: int, row: int) -> torch.Generator:
        """Draws the same for the same seed, epoch and row."""
        seed = np.random.SeedSequence((self.seed, epoch, row)).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(seed) >> 1)
