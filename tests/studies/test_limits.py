"""What limits a captioner: the table says what plain evaluations say."""

from pathlib import Path

import numpy as np
import pytest
import torch

from prefixcap.captioner import Captioner
from prefixcap.encoders import load_encoder
from prefixcap.evaluation import evaluate
from prefixcap.language import load_language_model
from prefixcap.store import FeatureStore, ImageRecord, StoreWriter, join
from studies.photographs import limits
from studies.photographs.limits import caption_embeddings

CAPTIONS = ("A red circle.", "a circle in red", "One round thing.", "A disc, red.")


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Ten images a split, with four captions each."""
    encoder, generator = load_encoder("demo").identity, np.random.default_rng(0)
    writer = StoreWriter(tmp_path / "store", encoder, "made up", tmp_path, job="x", shards=1)
    records = [
        ImageRecord(f"{split}{number}", "", split, tuple(f"{text} {number}" for text in CAPTIONS))
        for split in ("train", "val")
        for number in range(10)
    ]
    columns = {
        "images/embedding": generator.normal(size=(20, encoder.dim)).astype(np.float16),
        "captions/embedding": generator.normal(size=(80, encoder.dim)).astype(np.float16),
    }
    writer.write_piece(0, 0, 1, records, columns, [])
    join(tmp_path / "store")
    return FeatureStore(tmp_path / "store")


def test_the_table(
    store: FeatureStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ROUGE-L in the place of METEOR, for which Java would start twice for each row."""
    monkeypatch.setattr(limits, "METRICS", ("BLEU", "ROUGE-L", "CIDEr"))
    monkeypatch.setattr(limits, "COLUMNS", ("BLEU-4", "ROUGE-L", "CIDEr"))
    torch.manual_seed(0)
    captioner = Captioner(
        load_language_model("demo", "full"), load_encoder("demo").identity, {"name": "mlp", "prefix_length": 4}
    )
    captioner.save_pretrained(tmp_path / "captioner")
    limits.main(["--ckpt", str(tmp_path / "captioner"), "--store", str(tmp_path / "store")])
    lines = capsys.readouterr().out.splitlines()[2:]
    rows = {name: scores for name, *scores in ([*map(str.strip, line.split("|")[1:-1])] for line in lines if line)}

    split = store.split("val")
    references = {image: list(texts)[2:] for image, texts in split.references().items()}
    embeddings = torch.from_numpy(split.feature("captions/embedding")[:].astype(np.float32))
    lengths = torch.linalg.vector_norm(embeddings, dim=1)
    first = torch.stack([embeddings[4 * image] / lengths[4 * image] for image in range(10)])
    second = torch.stack([embeddings[4 * image + 1] / lengths[4 * image + 1] for image in range(10)])
    read = {
        "the photograph": torch.from_numpy(split.embeddings[:].astype(np.float32)),
        "one of its captions by people": first,
        "the mean of 2": (first + second) / 2,
    }
    for name, given in read.items():
        captions = captioner.caption(given)
        scores = evaluate(dict(zip(references, captions, strict=True)), references, list(limits.METRICS)).scores.corpus
        assert [cell.split()[0] for cell in rows[name][:3]] == [f"{scores[column]:.3f}" for column in limits.COLUMNS]
        assert all(" ±" in cell for cell in rows[name][:3])
        assert rows[name][3] == str(len(set(captions)))
        if name in caption_embeddings(split):
            torch.testing.assert_close(caption_embeddings(split)[name], given)
    people = {image: texts[0] for image, texts in split.references().items()}
    scores = evaluate(people, references, ["BLEU", "CIDEr"]).scores.corpus
    assert rows["a person's caption itself"][2].startswith(f"{scores['CIDEr']:.3f} ±") and len(rows) == 5
    with pytest.raises(SystemExit, match="error: "):
        limits.main(["--ckpt", str(tmp_path / "captioner"), "--store", str(tmp_path / "none")])
