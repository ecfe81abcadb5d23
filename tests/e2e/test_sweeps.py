"""Sweeps over several runs of train.py, and what it finds instead of training, on a small world of a few pictures."""

import csv
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from prefixcap.commands import main
from prefixcap.commands.prefix_length import evaluate_runs
from tests.e2e.conftest import Script

Train = Callable[..., str]


@pytest.fixture
def train(script: Script) -> Train:
    """Run train.py on the few pictures."""
    few = ["data=demo", "batch_size=16", "val_max_tokens=12", "+trainer.enable_progress_bar=false"]
    return lambda *options: script("train", *options, *few)


def val_losses(run: Path) -> list[float]:
    """Of each validation: of so few images it chooses, and not CIDEr."""
    with (run / "metrics.csv").open() as file:
        return [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]]


@pytest.mark.slow
def test_the_ablation_of_the_prefix_length(train: Train, folder: Path) -> None:
    printed = train(
        "--multirun", "experiment=prefix_length", "model.mapper.prefix_length=1,2", "trainer.max_epochs=1",
        "+trainer.limit_train_batches=2", "optimizer.learning_rate=1e-3",
    )  # fmt: skip
    runs = {"mlp-1": "full", "mlp-2": "full", "transformer-1": "frozen", "transformer-2": "frozen"}
    for name, tuning in runs.items():
        config = yaml.safe_load((folder / "runs" / "prefix_length" / name / "config.yaml").read_text())
        assert f"{config['model']['mapper']['name']}-{config['model']['mapper']['prefix_length']}" == name
        assert config["model"]["lm_tuning"] == tuning
        assert f"runs/prefix_length/{name}/checkpoints/best.ckpt" in printed
    main("prefix-length", ["runs/prefix_length", "--images", "5", "--decode", "greedy"])
    points = evaluate_runs(Path("runs/prefix_length"), 5, "greedy")
    assert {(point.run, point.split) for point in points} == {(run, of) for run in runs for of in ("train", "test")}
    assert (folder / "runs" / "prefix_length" / "prefix_length.png").stat().st_size > 10_000


@pytest.mark.slow
def test_optuna_maximises_the_score_of_the_best_checkpoint(train: Train, folder: Path) -> None:
    """Slow because it trains twice, for two epochs each."""
    train(
        "--multirun", "experiment=sweep_learning_rate", "hydra.sweeper.n_trials=2", "trainer.max_epochs=2", "model=mlp"
    )  # fmt: skip
    swept = folder / "runs" / "sweep_learning_rate"
    results = yaml.safe_load((swept / "optimization_results.yaml").read_text())
    runs = {run: -min(val_losses(run)) for run in swept.iterdir() if run.is_dir()}
    assert len(runs) == 2
    best = max(runs, key=lambda run: runs[run])
    assert results["best_value"] == pytest.approx(runs[best])
    config = yaml.safe_load((best / "config.yaml").read_text())
    assert config["optimizer"]["learning_rate"] == pytest.approx(
        float(results["best_params"]["optimizer.learning_rate"])
    )


@pytest.mark.slow
def test_early_stopping_and_averaged_weights_are_chosen_by_name(train: Train, folder: Path) -> None:
    printed = train(
        "callbacks=[early_stopping,ema]", "callbacks.early_stopping.patience=2", "callbacks.ema.decay=0.9",
        "callbacks.early_stopping.min_delta=100", "trainer.max_epochs=9", "run_dir=stopped", "model=mlp",
    )  # fmt: skip
    assert len(val_losses(folder / "stopped")) == 3  # the first, and two that were not better by 100
    assert "ended after epoch 3: val_loss no longer improved" in printed


@pytest.mark.slow
def test_a_rate_and_a_batch_size_are_found_and_nothing_is_trained(
    train: Train, folder: Path, mistake: Callable[..., str]
) -> None:
    printed = train("find=learning_rate", "run_dir=found", "trainer.max_epochs=9", "model=mlp")
    rate = re.search(r"^optimizer\.learning_rate=(\S+)", printed, re.M)
    assert rate and 1e-8 < float(rate[1]) < 1
    assert (folder / "found" / "lr_find.csv").exists() and not (folder / "found" / "checkpoints").exists()
    printed = train("find=batch_size", "run_dir=found_too", "model=mlp")
    size = re.search(r"^batch_size=(\d+)", printed, re.M)
    assert size and int(size[1]) == int(0.95 * 256)  # the first power of 2 that holds all 200 captions
    assert not (folder / "found_too" / "checkpoints").exists()
    assert "not 'luck'" in mistake(
        "train", f"data.store={folder}/stores/demo-demo", "find=luck", f"run_dir={folder}/none"
    )
