"""Options that no configuration lists: what Trainer, AdamW and others take is taken, all else is named in one line."""

from collections.abc import Callable

import pytest
from omegaconf import DictConfig

from prefixcap.commands.common import hydra_main as launch


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("bach_size=3", "no option 'bach_size'; did you mean batch_size?"),
        ("optimiser.eps=3", "no option 'optimiser.eps'; did you mean optimizer?"),
        ("optimizer.epsilon=1e-6", "no option 'optimizer.epsilon'; did you mean optimizer.eps"),
        ("objective.fusd=false", "no option 'objective.fusd'; did you mean objective.fused?"),
        ("trainer.max_epoch=3", "did you mean trainer.max_epochs or trainer.min_epochs or"),
        ("trainer.callbacks=[]", "no option 'trainer.callbacks'; "),  # the script gives them
        ("trainer._target_.x=1", "error: "),
        ("lm.foo=3", "no option 'lm.foo'; lm has dtype, gradient_checkpointing, lora, name, quantization, scratch"),
        ("model.mapper.depth=3", "no option 'model.mapper.depth'; model.mapper has clip_length, heads, layers, name, "),
        ("data.reader.shuffle=true", "no option 'data.reader.shuffle'; "),
    ],
)
def test_unknown_options_are_told_with_those_that_are_like_them(
    option: str, message: str, mistake: Callable[..., str]
) -> None:
    assert message in mistake("train", option)


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_options_that_are_not_listed(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[DictConfig] = []
    options = ["trainer.limit_val_batches=3", "optimizer.eps=1e-6", "optimizer.betas=[0.9,0.98]"]
    options = [prefix + option for option in [*options, "objective.fused=false"]] + ["data.root=a b"]
    monkeypatch.setattr("sys.argv", ["train.py", *options])
    launch.run(seen.append, "train")
    assert seen[0].trainer.limit_val_batches == 3
    assert (seen[0].optimizer.eps, seen[0].optimizer.betas) == (1e-6, [0.9, 0.98])
    assert seen[0].objective == {"fused": False}
    assert seen[0].data.options == ["data=demo", "'data.root=a b'"]
