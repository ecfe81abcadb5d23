"""The same command ends in the same weights, whether or not it has to make the feature store first."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.e2e.conftest import Script


@pytest.mark.slow
def test_making_the_store_changes_no_weights(script: Script, folder: Path) -> None:
    def weights(run: str) -> dict[str, Tensor]:
        script("train", "data=demo", f"run_dir={run}", "batch_size=50", "val_max_tokens=2", "+trainer.max_steps=4")
        checkpoint = torch.load(folder / run / "checkpoints" / "last.ckpt", weights_only=True)
        state: dict[str, Tensor] = checkpoint["state_dict"]
        return state

    assert not (folder / "stores").exists()
    made = weights("making")
    assert (folder / "stores").exists()
    torch.testing.assert_close(weights("again"), made, rtol=0, atol=0)
