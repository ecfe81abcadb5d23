"""Real photographs, 24 of COCO: the offline step, training until they are learned, evaluation, loading elsewhere."""

import json
import re
from pathlib import Path

import pytest

from prefixcap.metrics import score_captions
from tests.conftest import ROOT
from tests.e2e.test_commands import succeed


@pytest.mark.slow
def test_training_photographs_are_learned(shared: Path, tmp_path: Path) -> None:
    """Slow because photographs are learned by heart in no fewer than 80 epochs."""
    data = ["data=coco", f"data.root={shared / 'coco_mini'}", "data.reader.annotations=captions_val2014.json"]
    data.append(f"data.store={tmp_path / 'store'}")
    assert "train 16, test 4, val 4; captions: 120" in succeed("-m", "data_prep.embed", *data, "encoder=demo")
    run = tmp_path / "run"
    succeed(
        ROOT / "train.py", *data, "lm=demo", "encoder=demo", "model=mlp", f"run_dir={run}", "batch_size=20",
        "trainer.max_epochs=80", "trainer.check_val_every_n_epoch=40", "optimizer.learning_rate=4e-3",
        "optimizer.warmup_steps=20", "logger=wandb", "logger.wandb.offline=true",
    )  # fmt: skip
    assert list((run / "wandb").glob("offline-run-*"))
    last = run / "checkpoints" / "last.ckpt"
    out = tmp_path / "train-scores"
    succeed(ROOT / "eval.py", f"ckpt={last}", "split=train", "decode=greedy", f"out={out}")
    captions = {entry["image_id"]: entry["caption"] for entry in json.loads((out / "captions.json").read_text())}
    karpathy = json.loads((shared / "coco_mini" / "dataset_coco.json").read_text())["images"]
    references = {
        image["cocoid"]: [sentence["raw"] for sentence in image["sentences"]]
        for image in karpathy
        if image["split"] == "train"
    }
    cider = score_captions(captions, references, ("CIDEr",)).per_image["CIDEr"]
    learned = [i for i in references if captions[i] in references[i] or cider[i] > 1.0]
    assert len(learned) >= 14, captions

    printed = succeed(ROOT / "eval.py", f"ckpt={last}", "metrics=[BLEU,CIDEr]")
    assert re.search(r"captions +\d\.\d{4}", printed)
    photograph = next((shared / "coco_mini" / "val2014").iterdir())
    code = f"import prefixcap; print(prefixcap.load({str(last)!r}).caption([{str(photograph)!r}], decode='greedy'))"
    assert len(succeed("-c", code, cwd=tmp_path).strip()) > 6
