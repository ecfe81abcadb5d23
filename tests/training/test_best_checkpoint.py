"""What best.ckpt is picked by: CIDEr of the validation captions, unless that is 0 whatever they say, or chance."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from prefixcap.commands.train import monitored, monitoring
from prefixcap.encoders import load_encoder
from prefixcap.store import FeatureStore, ImageRecord, StoreSplit, StoreWriter, join
from prefixcap.training.checkpoints import best_and_last

TWO = [("a dog runs",), ("a cat", "the cat")]
MANY = TWO * 24 + [("一只狗",), ("两只猫",)]
NOTHING, CHANCE = "val_cider is 0 for any caption", "is mostly chance"


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
    ("captions", "limit", "reason"),
    [
        (MANY, None, None),
        (MANY[:-1], None, f"val_cider of 49 validation images {CHANCE}"),
        (TWO, None, f"val_cider of 2 validation images {CHANCE}"),
        (TWO[:1], None, f"{NOTHING}: no word of 1 validation image is rarer than another"),
        ([("a dog",)] * 60, None, f"{NOTHING}: no word of 60 validation images is rarer than another"),
        ([("...",), ("!",)], None, NOTHING),
        (MANY, 1, NOTHING),
        (MANY, 0.5, f"val_cider of 25 validation images {CHANCE}"),
        (MANY, 50, None),
        (TWO, 0, None),  # nothing is validated
    ],
)
def test_what_the_best_checkpoint_is_picked_by(
    captions: Any, limit: Any, reason: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = {} if limit is None else {"limit_val_batches": limit}
    config = OmegaConf.create({"batch_size": 1, "trainer": trainer})
    monitor = monitored(config, validation(tmp_path / "store", captions))
    printed = capsys.readouterr().out
    best, _ = best_and_last(tmp_path, monitor=monitor)
    if reason is None:
        assert (monitor, best.mode, printed) == ("val_cider", "max", "")
    else:
        assert (monitor, best.mode) == ("val_loss", "min")
        assert printed.startswith(reason) and printed.endswith(". val_loss chooses best.ckpt\n")


def test_callbacks_look_at_the_same() -> None:
    callbacks = OmegaConf.create({"early_stopping": {"monitor": "val_cider", "mode": "max"}, "ema": {"decay": 0.9}})
    OmegaConf.set_struct(callbacks, True)
    assert monitoring(callbacks, "val_cider") == callbacks
    looking = monitoring(callbacks, "val_loss")
    assert looking == {"early_stopping": {"monitor": "val_loss", "mode": "min"}, "ema": {"decay": 0.9}}
