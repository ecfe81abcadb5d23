"""What best.ckpt is picked by: CIDEr of the validation captions, unless that is 0 whatever they say."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from prefixcap.commands.train import monitored, monitoring
from prefixcap.encoders import load_encoder
from prefixcap.store import FeatureStore, ImageRecord, StoreSplit, StoreWriter, join
from prefixcap.training.checkpoints import best_and_last

TWO = [("a dog runs",), ("a cat", "the cat")]


def validation(folder: Path, captions: list[tuple[str, ...]]) -> StoreSplit:
    encoder = load_encoder("demo")
    records = [ImageRecord(number, f"{number}.jpg", "val", texts) for number, texts in enumerate(captions)]
    features = encoder.encode_texts(["a dog"] * len(records)).half().numpy()
    StoreWriter(folder, encoder.identity, "words", folder.parent, "job", 1).write_piece(
        0, 0, 1, records, {"images/embedding": features}, ()
    )
    join(folder)
    return FeatureStore(folder).split("val")


@pytest.mark.parametrize(
    ("captions", "limit", "picked_by"),
    [
        (TWO, None, "val_cider"),
        (TWO[:1], None, "val_loss"),
        ([("a dog",), ("a dog",)], None, "val_loss"),
        ([("...",), ("!",)], None, "val_loss"),
        ([("一只狗",), ("两只猫",)], None, "val_cider"),
        (TWO, 1, "val_loss"),
        (TWO, 0.5, "val_loss"),
        (TWO, 2, "val_cider"),
        (TWO, 0, "val_cider"),  # nothing is validated
    ],
)
def test_what_the_best_checkpoint_is_picked_by(
    captions: Any, limit: Any, picked_by: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = {} if limit is None else {"limit_val_batches": limit}
    config = OmegaConf.create({"batch_size": 1, "trainer": trainer})
    monitor = monitored(config, validation(tmp_path / "store", captions))
    printed = capsys.readouterr().out.splitlines()
    best, _ = best_and_last(tmp_path, monitor=monitor)
    assert (monitor, best.mode) == (picked_by, "max" if picked_by == "val_cider" else "min")
    assert len(printed) == (picked_by == "val_loss")
    assert all("val_cider is 0 for any caption" in line and "val_loss chooses best.ckpt" in line for line in printed)


def test_callbacks_look_at_the_same() -> None:
    callbacks = OmegaConf.create({"early_stopping": {"monitor": "val_cider", "mode": "max"}, "ema": {"decay": 0.9}})
    OmegaConf.set_struct(callbacks, True)
    assert monitoring(callbacks, "val_cider") == callbacks
    looking = monitoring(callbacks, "val_loss")
    assert looking == {"early_stopping": {"monitor": "val_loss", "mode": "min"}, "ema": {"decay": 0.9}}
