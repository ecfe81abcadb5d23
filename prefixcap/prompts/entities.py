"""Entities as a prompt: "There are dog, frisbee in image."

By CLIP: Fei et al., "Transferable Decoding with Visual Entities for Zero-Shot Image Captioning" (ViECap), ICCV 2023;
values are those of its published code. The names of a vocabulary are embedded in several templates each, whose mean
direction stands for the name (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
2021). A name's probability is softmax(cosine / temperature) over the vocabulary, and the prompt has the k likeliest
that reach a threshold: 3 at a temperature of 0.01, with thresholds of 0.4 (COCO's 80 categories), 0.3 (Flickr30k) and
0.2 (nocaps, both with the names of Visual Genome, COCO and Open Images). Where none does, the prompt is "There are
something in image." In training on text, the entities are those that the caption names, and each is masked with a
probability of 0.4, so that a captioner learns to read them and not to depend on them.

By retrieval: Lee et al., "IFCap: Image-like Retrieval and Frequency-based Entity Filtering for Zero-shot Captioning",
EMNLP 2024, frequency-based entity filtering: the entities that occur often among the captions of a datastore nearest to
the image, at least 5 of 9 by default. No vocabulary of the images' domain is needed: it is that of the captions. The
published code counts every noun that a tagger finds; here, captions that mention a name of the vocabulary are counted,
each once.

Shapes: n images; dim of an embedding; V names of the vocabulary; T templates.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from prefixcap.encoders import Encoder
from prefixcap.encoders.inputs import check_finite
from prefixcap.errors import InputError
from prefixcap.prompts.datastore import Datastore
from prefixcap.prompts.protocol import FIELD, Item, Prompt, check_template
from prefixcap.prompts.retrieval import require_size
from prefixcap.utils.array_cache import cached_arrays
from prefixcap.utils.options import Count, Proportion
from prefixcap.vocabulary import Vocabulary, as_vocabulary, entities_in

CLIP_TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""The seven templates that CLIP's authors chose for an ensemble on ImageNet, and that ViECap uses."""

MASKED = 0.4  # ViECap
_TEXTS = 256  # embedded at once
_QUERIES = 4096  # images at once


class _EntityPrompts:
    """What both kinds of prompts of entities have in common: the vocabulary and the template."""

    name: str

    def __init__(self, vocabulary: Any, template: str, nothing: str) -> None:
        self.vocabulary = as_vocabulary(vocabulary)
        self.template, self.nothing = check_template("template", template), nothing

    def compose(self, items: Sequence[str]) -> str:
        """The text of a prompt with these entities; without any, with `nothing` in their place."""
        return self.template.replace(FIELD, ", ".join(items) or self.nothing)

    def of_captions(
        self, captions: Sequence[str], masked: float = MASKED, generator: torch.Generator | None = None
    ) -> list[Prompt]:
        """Prompts for training on text: of the entities that each caption names, in random order.

        Args:
            captions: n texts.
            masked: the probability, 0.0-1.0, of leaving an entity out.
            generator: on the CPU, to draw from; None: torch's own.

        Returns:
            n prompts; the score of each entity is 1.0.
        """
        made = []
        for caption in captions:
            kept = mask(entities_in(caption, self.vocabulary), masked, generator)
            order = torch.randperm(len(kept), generator=generator).tolist()
            made.append(self._prompt([Item(kept[place], 1.0) for place in order]))
        return made

    def _prompt(self, items: Sequence[Item]) -> Prompt:
        return Prompt(self.compose([item.text for item in items]), tuple(items))

    def _describe(self, **options: Any) -> dict[str, Any]:
        described = {"name": self.name, "vocabulary": self.vocabulary.lines, **options}
        return described | {"template": self.template, "nothing": self.nothing}


class ClipEntities(_EntityPrompts):
    """Entities nearest to the image by CLIP (ViECap).

    Args:
        encoder: of the embeddings; it embeds the vocabulary, once: the embeddings are kept in the user's cache.
        datastore: not used.
        vocabulary: the path of a text file with one name a line, or these lines.
        top_k: entities in a prompt, at most.
        threshold: the least probability of an entity.
        temperature: of the softmax; the lower, the fewer entities reach the threshold.
        templates: that each name is embedded in; {} is where it goes. None: `CLIP_TEMPLATES`.
        template: of the prompt; {} is where the entities go, with commas between them.
        nothing: what the prompt says in place of entities where there are none.

    Raises:
        InputError: the vocabulary cannot be read or has fewer names than 2 or top_k, or a template has no field.

    Examples:
        >>> from prefixcap.encoders import load_encoder
        >>> encoder = load_encoder("demo")
        >>> provider = ClipEntities(encoder, None, ["red circle", "blue square", "green star"], threshold=0.9)
        >>> provider.prompts(encoder.encode_texts(["a blue square in the snow"]))[0].text
        'There are blue square in image.'
    """

    name = "clip_entities"
    needs_datastore = False

    def __init__(
        self,
        encoder: Encoder,
        datastore: Datastore | None,
        vocabulary: str | Path | Sequence[str] | Vocabulary,
        top_k: Count = 3,
        threshold: Proportion = 0.2,
        temperature: Annotated[float, Gt(0.0)] = 0.01,
        templates: Sequence[str] | None = None,
        template: str = "There are {} in image.",
        nothing: str = "something",
    ) -> None:
        super().__init__(vocabulary, template, nothing)
        self.top_k, self.threshold, self.temperature = top_k, threshold, temperature
        self.templates = [check_template("templates", each) for each in templates or CLIP_TEMPLATES]
        if top_k > len(self.vocabulary):
            raise InputError(
                f"top_k={top_k}, but the vocabulary has {len(self.vocabulary)} names: give at most as many"
            )
        self.embeddings = embed_vocabulary(encoder, self.vocabulary, self.templates)  # (V, dim)

    @torch.no_grad()
    def prompts(
        self,
        embeddings: Tensor,
        leave_out: Sequence[Collection[str]] | None = None,
        images: Sequence[int | str] | None = None,
    ) -> list[Prompt]:
        """(n, dim) embeddings -> n prompts, whose items are entities with their probabilities; see `PromptProvider`.

        No caption is retrieved, so that none need be left out.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embeddings.shape[1]:
            raise InputError(
                f"embeddings of shape {tuple(embeddings.shape)}: give (n, {self.embeddings.shape[1]}), from the "
                "encoder that embedded the vocabulary"
            )
        check_finite(embeddings)
        made = []
        for part in embeddings.split(_QUERIES):
            names = self.embeddings.to(part.device)
            scores = (F.normalize(part.float(), dim=1) @ names.T / self.temperature).softmax(1)  # (part, V)
            best, rows = scores.topk(self.top_k, dim=1)  # (part, top_k) each
            for probabilities, places in zip(best.tolist(), rows.tolist(), strict=True):
                pairs = zip(places, probabilities, strict=True)
                likely = [
                    Item(self.vocabulary.names[place], score) for place, score in pairs if score >= self.threshold
                ]
                made.append(self._prompt(likely))
        return made

    def describe(self) -> dict[str, Any]:
        """Name and options, the vocabulary by its lines; see `PromptProvider`."""
        return self._describe(
            top_k=self.top_k, threshold=self.threshold, temperature=self.temperature, templates=self.templates
        )


class RetrievedEntities(_EntityPrompts):
    """Entities that are frequent in retrieved captions (IFCap).

    Args:
        encoder: of the embeddings.
        datastore: to retrieve from.
        vocabulary: the path of a text file with one name a line, or these lines.
        k: captions to retrieve.
        least: of these, how many must mention an entity.
        template: of the prompt; {} is where the entities go, with commas between them.
        nothing: what the prompt says in place of entities where there are none.

    Raises:
        InputError: the vocabulary cannot be read or has fewer than 2 names, the datastore is of another encoder or has
            fewer than k captions, `least` is above k, or the template has no field.

    Examples:
        >>> from prefixcap.encoders import load_encoder
        >>> from prefixcap.textonly.memory import MemoryBank
        >>> encoder = load_encoder("demo")
        >>> captions = ["a red circle", "a red ring", "a blue star", "a large red circle"]
        >>> datastore = Datastore(MemoryBank(encoder.encode_texts(captions), captions), encoder.identity)
        >>> provider = RetrievedEntities(encoder, datastore, ["red", "blue", "circle", "ring", "star"], k=3, least=2)
        >>> provider.prompts(encoder.encode_texts(["a small red circle"]))[0].text
        'There are red, circle in image.'
    """

    name = "retrieved_entities"
    needs_datastore = True

    def __init__(
        self,
        encoder: Encoder,
        datastore: Datastore,
        vocabulary: str | Path | Sequence[str] | Vocabulary,
        k: Count = 9,
        least: Count = 5,
        template: str = "There are {} in image.",
        nothing: str = "something",
    ) -> None:
        super().__init__(vocabulary, template, nothing)
        datastore.require_encoder(encoder.identity)
        require_size(datastore, k)
        if least > k:
            raise InputError(f"least={least} of k={k} captions cannot mention an entity: give at most k")
        self.datastore, self.k, self.least = datastore, k, least

    def prompts(
        self,
        embeddings: Tensor,
        leave_out: Sequence[Collection[str]] | None = None,
        images: Sequence[int | str] | None = None,
    ) -> list[Prompt]:
        """(n, dim) embeddings -> n prompts, whose items are entities with the share of captions that mention them.

        The most frequent come first, equally frequent ones in the order of the nearest captions that mention them. See
        `PromptProvider`.
        """
        return [
            self._prompt(self._frequent([item.text for item in items]))
            for items in self.datastore.nearest(embeddings, self.k, leave_out, images)
        ]

    def _frequent(self, captions: Sequence[str]) -> list[Item]:
        counts = Counter(name for caption in captions for name in entities_in(caption, self.vocabulary))
        return [Item(name, count / self.k) for name, count in counts.most_common() if count >= self.least]

    def describe(self) -> dict[str, Any]:
        """Name and options, the vocabulary by its lines, and where the datastore comes from; see `PromptProvider`."""
        return self._describe(k=self.k, least=self.least, datastore=self.datastore.describe())


def mask(entities: Sequence[str], share: float, generator: torch.Generator | None = None) -> list[str]:
    """Leave out each entity with a probability, independently of the others (ViECap).

    Args:
        entities: of a caption.
        share: the probability of leaving one out, 0.0-1.0.
        generator: on the CPU, to draw from; None: torch's own.

    Raises:
        InputError: the share is not between 0 and 1.

    Examples:
        >>> mask(["dog", "frisbee", "grass"], 0.4, torch.Generator().manual_seed(1))
        ['dog', 'grass']
    """
    if not 0 <= share <= 1:
        raise InputError(f"a share of {share} entities is to be masked: give 0.0 to 1.0")
    draws = torch.rand(len(entities), generator=generator).tolist()
    return [entity for entity, draw in zip(entities, draws, strict=True) if draw >= share]


@torch.no_grad()
def embed_vocabulary(encoder: Encoder, vocabulary: Vocabulary, templates: Sequence[str] = CLIP_TEMPLATES) -> Tensor:
    """The direction of each name: the mean, scaled to unit length, of its embeddings of unit length in T templates.

    They are kept in the user's cache, by the encoder's digest and dtype, the names and the templates.

    Returns:
        (V, dim) float32, on the encoder's device.

    Examples:
        >>> from prefixcap.encoders import load_encoder
        >>> embed_vocabulary(load_encoder("demo"), Vocabulary(["red circle", "blue square"])).shape
        torch.Size([2, 128])
    """

    def make() -> dict[str, Any]:
        texts = [template.replace(FIELD, name) for name in vocabulary.names for template in templates]
        parts = [encoder.encode_texts(texts[start : start + _TEXTS]).float() for start in range(0, len(texts), _TEXTS)]
        directions = F.normalize(torch.cat(parts), dim=1).unflatten(0, (-1, len(templates)))  # (V, T, dim)
        return {"embeddings": F.normalize(directions.mean(1), dim=1).cpu().numpy()}

    identity = encoder.identity
    if identity.digest:
        content = json.dumps([identity.digest, str(encoder.dtype), vocabulary.names, list(templates)])
        arrays = cached_arrays("vocabularies", hashlib.sha256(content.encode()).hexdigest()[:32], make)
    else:  # of weights that are not known
        arrays = make()
    embeddings = arrays.get("embeddings", np.empty(0))
    if embeddings.shape != (len(vocabulary), identity.dim):  # of another program
        embeddings = make()["embeddings"]
    return torch.from_numpy(embeddings).to(encoder.device, torch.float32)
