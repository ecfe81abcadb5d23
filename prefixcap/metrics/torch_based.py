"""Metrics that torch computes; they import it when they are computed.

n is the number of images. The same figures for training loops of one's own: `prefixcap.metrics.clip_score`,
`prefixcap.metrics.diversity` and `prefixcap.metrics.perplexity`, as `torchmetrics.Metric`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefixcap.metrics.metric import Metric, MetricUnavailable, Statistics, mean, mean_of
from prefixcap.metrics.ptb import tokenize
from prefixcap.metrics.tokenizers import TOKENIZERS

if TYPE_CHECKING:
    from torch import Tensor

    from prefixcap.encoders import Encoder
    from prefixcap.language import LanguageModel
    from prefixcap.metrics.clip_score import Cosines
    from prefixcap.metrics.text_encoder import TextEncoder


class _ImageMetric(Metric):
    """CLIPScore, PAC-S and those with references: all come from the same cosines, which are computed once."""

    needs = ("embeddings", "encoder", "shared")
    tokenized = False

    def _cosines(
        self,
        captions: Sequence[str],
        references: Sequence[Sequence[str]],
        embeddings: "Tensor",
        encoder: "Encoder",
        shared: dict[str, Any],
    ) -> "Cosines":
        from prefixcap.metrics.clip_score import cosines_of_texts

        if "cosines" not in shared:
            shared["cosines"] = cosines_of_texts(encoder, embeddings, captions, references)
        cosines: Cosines = shared["cosines"]
        return cosines


class _ClipMetric(_ImageMetric):
    """CLIPScore or RefCLIPScore."""

    def statistics(
        self,
        captions: Sequence[str],
        references: Sequence[Sequence[str]],
        embeddings: "Tensor",
        encoder: "Encoder",
        shared: dict[str, Any],
    ) -> Statistics:
        """(n, 2) = (score, 1)."""
        from prefixcap.metrics.clip_score import scores_of_cosines

        return mean_of(
            scores_of_cosines(self._cosines(captions, references, embeddings, encoder, shared))[self.name].numpy()
        )


class ClipScore(_ClipMetric):
    """CLIPScore (Hessel et al., 2021, section 3), 0 to 2.5; see `prefixcap.metrics.clip_score`.

    Examples:
        >>> from prefixcap.encoders import load_encoder
        >>> encoder = load_encoder("demo")
        >>> images = encoder.encode_texts(["a red circle", "a blue square"])  # in place of pictures
        >>> references = [["a red ring"], ["one blue square", "a square"]]
        >>> ClipScore().statistics(["a red circle", "a blue square"], references, images, encoder, shared={}).shape
        (2, 2)
    """

    name = "CLIPScore"
    scores = ("CLIPScore",)
    brings = ("RefCLIPScore",)


class RefClipScore(_ClipMetric):
    """RefCLIPScore (Hessel et al., 2021, section 3), 0 to 1.43; see `prefixcap.metrics.clip_score`.

    Examples:
        >>> from prefixcap.encoders import load_encoder
        >>> encoder = load_encoder("demo")
        >>> images = encoder.encode_texts(["a red circle", "a blue square"])  # in place of pictures
        >>> references = [["a red ring"], ["one blue square", "a square"]]
        >>> RefClipScore().statistics(["a red circle", "a blue square"], references, images, encoder, shared={}).shape
        (2, 2)
    """

    name = "RefCLIPScore"
    scores = ("RefCLIPScore",)


class PacScore(_ImageMetric):
    """PAC-S or RefPAC-S (Sarto et al., 2023), 0 to 2 and 0 to 1.33; see `prefixcap.metrics.pac_score`.

    Args:
        with_references: RefPAC-S.

    Examples:
        >>> from prefixcap.encoders import load_encoder
        >>> encoder = load_encoder("demo")
        >>> images = encoder.encode_texts(["a red circle"])  # in place of a picture
        >>> list(PacScore().figures(["a red circle"], [["a red ring"]], images, encoder, shared={}))
        ['demo']
    """

    values_of_images = True

    def __init__(self, with_references: bool = False) -> None:
        self.name = "RefPAC-S" if with_references else "PAC-S"
        self.brings = () if with_references else ("RefPAC-S",)

    def figures(
        self,
        captions: Sequence[str],
        references: Sequence[Sequence[str]],
        embeddings: "Tensor",
        encoder: "Encoder",
        shared: dict[str, Any],
    ) -> dict[str, float | Statistics]:
        """One figure, named after the encoder, of a file without its folder, as only figures of the same compare.

        (n, 2) = (score, 1).
        """
        from prefixcap.metrics.pac_score import pac_scores_of_cosines

        scores = pac_scores_of_cosines(self._cosines(captions, references, embeddings, encoder, shared))
        backend, colon, checkpoint = encoder.identity.name.partition(":")
        file = Path(checkpoint).expanduser()
        name = f"{backend}{colon}{file.name if file.exists() else checkpoint}"
        return {name: mean_of(scores[self.name].numpy())}


class BertScore(Metric):
    """BERTScore (Zhang et al., 2020), -1 to 1; see `prefixcap.metrics.bert_score.bert_scores`.

    Args:
        idf: weigh tokens by how few of the references have them.

    Examples:
        >>> from prefixcap.metrics.text_encoder import load_text_encoder
        >>> encoder = load_text_encoder("roberta-large")  # doctest: +SKIP
        >>> figures = BertScore().figures(["a dog"], [["the dog"]], text_encoder=encoder)  # doctest: +SKIP
        >>> list(figures)  # doctest: +SKIP
        ['roberta-large layer 17']
    """

    needs = ("text_encoder",)
    tokenized = False
    values_of_images = True

    def __init__(self, idf: bool = False) -> None:
        self.name, self._idf = "BERTScore-idf" if idf else "BERTScore", idf

    def figures(
        self, captions: Sequence[str], references: Sequence[Sequence[str]], text_encoder: "TextEncoder"
    ) -> dict[str, float | Statistics]:
        """One figure, named after the encoder and its layer: (n, 2) = (F1, 1).

        Raises:
            InputError: a text is longer than the encoder reads.
        """
        from prefixcap.metrics.bert_score import bert_scores

        scores = bert_scores(text_encoder, captions, references, self._idf)
        return {f"{text_encoder.name} layer {text_encoder.layer}": mean_of(scores.numpy())}


class SentenceSimilarity(Metric):
    """The cosine of a caption with the nearest reference, -1 to 1; see `prefixcap.metrics.bert_score.similarities`.

    Examples:
        >>> from prefixcap.metrics.text_encoder import load_text_encoder
        >>> encoder = load_text_encoder("sentence-transformers/all-MiniLM-L6-v2")  # doctest: +SKIP
        >>> figures = SentenceSimilarity().figures(["a dog"], [["the dog"]], text_encoder=encoder)  # doctest: +SKIP
        >>> list(figures)  # doctest: +SKIP
        ['sentence-transformers/all-MiniLM-L6-v2']
    """

    name = "sentence-similarity"
    needs = ("text_encoder",)
    tokenized = False
    values_of_images = True

    def figures(
        self, captions: Sequence[str], references: Sequence[Sequence[str]], text_encoder: "TextEncoder"
    ) -> dict[str, float | Statistics]:
        """One figure, named after the encoder: (n, 2) = (cosine, 1).

        Raises:
            InputError: a text is longer than the encoder reads.
        """
        from prefixcap.metrics.bert_score import similarities

        return {text_encoder.name: mean_of(similarities(text_encoder, captions, references).numpy())}


class CaptionDiversity(Metric):
    """Vocabulary, distinct n-grams, length, share of new captions; see `prefixcap.metrics.diversity`.

    Examples:
        >>> figures = CaptionDiversity().figures(["a dog runs", "a dog"], [], training_captions=["A dog."])
        >>> figures["Vocabulary"]
        3.0
        >>> figures["Novel"]
        array([[1., 1.],
               [0., 1.]])
    """

    name = "diversity"
    needs = ("training_captions", "tokenizer")
    tokenized = False

    def figures(
        self,
        captions: Sequence[str],
        references: Sequence[Sequence[str]],
        training_captions: Sequence[str] | None,
        tokenizer: str = "ptb",
    ) -> dict[str, float | Statistics]:
        """The figures of `prefixcap.metrics.diversity.Diversity`; "Novel" only where training captions are known.

        "Length" and "Novel" are means over captions, given as `mean_of` does. The vocabulary and the distinct n-grams
        are no sums. Nor would a bootstrap sample do: it has some captions twice and lacks others, hence fewer words.
        """
        from prefixcap.metrics.diversity import diversity, novel

        def words(text: str) -> str:
            return tokenize(text) if tokenizer == "ptb" else TOKENIZERS[tokenizer]([text])[0]

        tokenized = [words(caption) for caption in captions]
        figures: dict[str, float | Statistics] = dict(diversity(tokenized))
        figures["Length"] = mean_of([len(caption.split()) for caption in tokenized])
        if training_captions is not None:
            figures["Novel"] = mean_of(novel(tokenized, map(words, training_captions)).astype(np.float64))
        return figures


class CaptionPerplexity(Metric):
    """The perplexity of captions under a language model, 1 or more; see `prefixcap.metrics.perplexity`.

    Examples:
        >>> from prefixcap.language import load_language_model
        >>> figures = CaptionPerplexity().figures(["A red circle in a meadow."], [], load_language_model("demo"))
        >>> list(figures)
        ['under demo']
        >>> figures["under demo"].shape
        (1, 2)
    """

    name = "perplexity"
    needs = ("language_model",)
    tokenized = False

    def figures(
        self, captions: Sequence[str], references: Sequence[Sequence[str]], language_model: "LanguageModel"
    ) -> dict[str, float | Statistics]:
        """One figure, named after the language model: (n, 2) = (-log p of a caption in nats, its tokens).

        Raises:
            MetricUnavailable: no caption has a word.
            InputError: a caption is longer than the context of the language model.
        """
        from prefixcap.metrics.perplexity import negative_log_likelihood

        if not any(map(str.strip, captions)):
            raise MetricUnavailable("no caption has a word")
        nats, tokens = negative_log_likelihood(language_model, captions)
        return {f"under {language_model.name}": np.stack((nats.numpy(), tokens.numpy()), axis=-1).astype(np.float64)}

    def score(self, totals: Statistics) -> Statistics:
        """(..., 2) sums of nats and tokens -> (..., 1) perplexity."""
        return np.exp(mean(totals))
