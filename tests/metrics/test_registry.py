"""METRICS: metrics of one's own, whatever they read, and what is said where that is missing."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import prefixcap.metrics
from prefixcap.encoders import Encoder, load_encoder
from prefixcap.errors import InputError
from prefixcap.evaluation import evaluate
from prefixcap.evaluation.comparison import compare
from prefixcap.language import LanguageModel, load_language_model
from prefixcap.metrics import METRICS, Metric, MetricInputs, mean_of, score_captions, score_humans
from prefixcap.metrics.caption_metrics import CaptionMetric
from prefixcap.metrics.perplexity import negative_log_likelihood

CAPTIONS = {"a": "A red circle.", "b": "A blue square in a meadow.", "c": "a green star", "d": "A red star!"}
REFERENCES = {
    "a": ["A red ring.", "a circle"],
    "b": ["A blue box in a meadow", "one blue square"],
    "c": ["a green star", "the star is green"],
    "d": ["a pink heart", "a heart"],
}
DOMAINS = {"a": "in", "b": "near", "c": "in", "d": "near"}


class Angle(Metric):
    """Needs images: the mean angle between image and caption, in degrees, on the tokenized captions."""

    name = "angle"
    scores = ("angle",)
    needs = ("encoder", "embeddings")

    def statistics(
        self, captions: Sequence[str], references: Sequence[Sequence[str]], encoder: Encoder, embeddings: torch.Tensor
    ) -> NDArray[np.float64]:
        assert len(captions) == len(references) == len(embeddings)
        cosines = torch.cosine_similarity(embeddings, encoder.encode_texts(list(captions)))
        return mean_of(torch.rad2deg(torch.arccos(cosines.clamp(-1, 1))).tolist())


class Surprise(Metric):
    """Needs a language model: nats per token, of the captions as they were written."""

    name = "surprise"
    scores = ("nats per token", "tokens")
    needs = ("language_model",)
    tokenized = False

    def statistics(
        self, captions: Sequence[str], references: Sequence[Sequence[str]], language_model: LanguageModel
    ) -> NDArray[np.float64]:
        nats, tokens = negative_log_likelihood(language_model, captions)
        return np.stack((nats.numpy(), tokens.numpy(), np.ones(len(tokens))), axis=-1)

    def score(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        return totals[..., :2] / totals[..., 1:]


class Known(Metric):
    """Figures of all captions together, as numbers: how many are among the training captions."""

    name = "known"
    needs = ("training_captions",)
    tokenized = False

    def figures(
        self, captions: Sequence[str], references: Sequence[Sequence[str]], training_captions: Sequence[str] | None
    ) -> dict[str, float]:
        return {"known": float(sum(caption in (training_captions or ()) for caption in captions))}


@pytest.fixture(autouse=True)
def metrics_as_before() -> Iterator[None]:
    before = dict(METRICS)
    METRICS.update(angle=Angle(), surprise=Surprise(), known=Known())
    yield
    METRICS.clear()
    METRICS.update(before)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder("demo")


def test_metrics_that_need_images_or_a_language_model_are_added_as_any_other(encoder: Encoder, tmp_path: Path) -> None:
    """In all that `evaluate` gives of BLEU: corpus, images, domains, intervals, files, comparison."""
    lm = load_language_model("demo")
    images = encoder.encode_texts([texts[0] for texts in REFERENCES.values()])  # in place of pictures
    backwards = dict(reversed(CAPTIONS.items()))
    evaluation = evaluate(
        backwards, REFERENCES, ["surprise", "known", "angle", "CIDEr"], domains=DOMAINS, encoder=encoder,
        embeddings=images, language_model=lm, training_captions=["a green star"],
    )  # fmt: skip

    tokenized = ["a red circle", "a blue square in a meadow", "a green star", "a red star"]
    units = [torch.nn.functional.normalize(rows, dim=-1) for rows in (images, encoder.encode_texts(tokenized))]
    angles = np.degrees(np.arccos(np.clip((units[0] * units[1]).sum(-1).double().numpy(), -1, 1)))
    scores = evaluation.scores
    assert list(scores.corpus) == ["CIDEr", "angle", "nats per token", "tokens"]
    assert list(scores.per_image["angle"].values()) == pytest.approx(angles, abs=0.05)
    assert scores.corpus["angle"] == pytest.approx(angles.mean(), abs=0.05)
    assert evaluation.domains["near"].corpus["angle"] == pytest.approx(angles[[1, 3]].mean(), abs=0.05)

    nats = [float(negative_log_likelihood(lm, [caption])[0]) for caption in CAPTIONS.values()]
    tokens = [int(negative_log_likelihood(lm, [caption])[1]) for caption in CAPTIONS.values()]
    assert scores.corpus["nats per token"] == pytest.approx(sum(nats) / sum(tokens))
    assert scores.corpus["tokens"] == sum(tokens) / 4
    assert evaluation.domains["in"].corpus["nats per token"] == pytest.approx(
        (nats[0] + nats[2]) / (tokens[0] + tokens[2])
    )
    for name in ("angle", "nats per token"):
        low, high = evaluation.intervals[name]
        assert low < scores.corpus[name] < high
    assert evaluation.extra == {"known": {"known": 1.0}}
    assert evaluation.humans is not None and list(evaluation.humans.corpus) == ["CIDEr"]

    evaluation.write(tmp_path, "test")
    assert json.loads((tmp_path / "metrics.json").read_text())["known"] == {"known": 1.0}
    header = (tmp_path / "per_image.csv").read_text().splitlines()[0]
    assert header == '"image_id","caption","CIDEr","angle","nats per token","tokens"'
    assert "nats per token" in (tmp_path / "report.html").read_text()
    compared = compare(tmp_path, tmp_path)
    assert list(compared.pairs) == ["CIDEr", "angle", "nats per token", "tokens"]
    assert not any("not compared" in note for note in compared.notes)
    del METRICS["angle"]
    compared = compare(tmp_path, tmp_path)
    assert "angle" not in compared.pairs and "not compared, as METRICS lacks them: angle" in compared.table()


def test_a_part_is_scored_with_its_own_embeddings_where_statistics_depend_on_all_images(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = encoder.encode_texts([texts[0] for texts in REFERENCES.values()])
    inputs = {"encoder": encoder, "embeddings": images}
    rows = evaluate(CAPTIONS, REFERENCES, ["angle"], domains=DOMAINS, **inputs)  # type: ignore[arg-type]
    monkeypatch.setattr(Angle, "uses_all_images", True)
    again = evaluate(CAPTIONS, REFERENCES, ["angle"], domains=DOMAINS, **inputs)  # type: ignore[arg-type]
    for domain, scores in rows.domains.items():
        assert again.domains[domain].per_image["angle"] == pytest.approx(scores.per_image["angle"], abs=0.05)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("angle", "angle needs the encoder that made the images' embeddings: give encoder="),
        ("RefCLIPScore", "RefCLIPScore needs the images' embeddings: give embeddings="),
        ("surprise", "surprise needs a language model: give language_model="),
    ],
)
def test_what_a_metric_lacks_is_said_in_one_line(metric: str, message: str) -> None:
    for call in (evaluate, score_captions):
        with pytest.raises(InputError) as error:
            call(CAPTIONS, REFERENCES, ["CIDEr", metric])
        assert str(error.value) == message


def test_embeddings_of_other_images(encoder: Encoder) -> None:
    inputs = MetricInputs(encoder.encode_texts(["a dog"] * 3), encoder)
    with pytest.raises(InputError, match=r"^3 image embeddings, 4 images: give one for each image"):
        score_captions(CAPTIONS, REFERENCES, ["angle"], inputs)


def test_metrics_that_read_more_than_references_are_no_torchmetrics_of_references() -> None:
    for name in ("angle", "diversity"):
        with pytest.raises(InputError, match=f"^{name} does not score captions against references"):
            CaptionMetric(METRICS[name])


def test_a_scorer_of_an_older_script_is_used_under_the_old_name() -> None:
    class Words:
        name = "words"
        scores = ("words",)

        def statistics(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
            return np.array([[len(caption.split())] for caption in captions], np.float64)

        def score(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
            return totals * 2

    with pytest.warns(FutureWarning, match="prefixcap.metrics.SCORERS is called prefixcap.metrics.registry.METRICS"):
        scorers = prefixcap.metrics.SCORERS
    with pytest.warns(FutureWarning):
        from prefixcap.metrics.scorer import Scorer
    assert scorers is METRICS and Scorer is Metric
    scorers["words"] = Words()
    evaluation = evaluate(CAPTIONS, REFERENCES, ["words"])
    assert evaluation.scores.corpus == {"words": 2 * (3 + 6 + 3 + 3)}
    assert "words" in evaluation.intervals and evaluation.humans is not None


def test_people_are_scored_again_by_a_metric_that_may_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache knows the code of this package only."""
    monkeypatch.setenv("PREFIXCAP_CACHE", str(tmp_path))
    references = {number: [f"a dog {number}", "a cat"] for number in range(600)}

    def words(factor: int) -> float:
        class Words(Metric):
            name = "words"
            scores = ("words",)

            def statistics(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
                return mean_of([factor * len(caption.split()) for caption in captions])

        METRICS["words"] = Words()
        humans = score_humans(references, ["words"])
        assert humans is not None
        return humans.corpus["words"]

    assert (words(1), words(2)) == (2.5, 5.0)


def test_metrics_load_no_torch_before_one_is_computed_that_needs_it() -> None:
    code = (
        "import sys, prefixcap.metrics as metrics; "
        "scores = metrics.score_captions({1: 'a dog'}, {1: ['a dog']}, ['BLEU', 'ROUGE-L', 'CIDEr']); "
        "print(sorted({'torch', 'torchmetrics', 'transformers'} & set(sys.modules)), scores.corpus['ROUGE-L'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[] 1.0"
