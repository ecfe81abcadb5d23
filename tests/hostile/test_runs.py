"""A run's folder that somebody else made: going on with it builds nothing but what training itself would."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from prefixcap.commands.common.run_folder import read_config
from tests.conftest import small_captioner
from tests.test_conf import composed


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that was stopped."""
    (tmp_path / "checkpoints").mkdir()
    captioner = small_captioner()
    weights = {f"captioner.{name}": weight for name, weight in captioner.checkpoint_state_dict().items()}
    content = {"prefixcap": captioner.describe(), "state_dict": weights, "global_step": 1}
    torch.save(content, tmp_path / "checkpoints" / "last.ckpt")
    return tmp_path


def options(run: Path) -> dict[str, object]:
    config = OmegaConf.to_container(composed("train", f"run_dir={run}", "name=mine"))
    return cast(dict[str, object], config)


PROGRAM = {"_target_": "pathlib.Path.touch", "_args_": [{"_target_": "pathlib.Path", "_args_": ["ran"]}]}


@pytest.mark.parametrize("place", ["trainer.strategy", "callbacks.mine", "logger.mine", "data.reader", "model.a.b"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_class_of_somebody_elses_is_not_built(
    run: Path, place: str, inside: bool, mistake: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = options(run)
    *parents, last = place.split(".")
    node = changed
    for parent in parents:
        node = node.setdefault(parent, {})  # type: ignore[assignment]
    node[last] = {"x": [PROGRAM]} if inside else PROGRAM
    (run / "config.yaml").write_text(yaml.safe_dump(changed))
    told = mistake("train", f"ckpt={run}/checkpoints/last.ckpt")
    assert "builds 'pathlib.Path" in told and "if not, do not resume it" in told
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "text", ["", "[1]", "a: [", "{" * 5000, "data: 3", "a: &a [*a]", "!!python/name:os.system x", "\0"]
)
def test_a_configuration_that_is_none(run: Path, text: str, mistake: Callable[..., str]) -> None:
    (run / "config.yaml").write_text(text)
    assert "config.yaml" in mistake("train", f"ckpt={run}/checkpoints/last.ckpt")


def test_what_the_command_line_names_is_taken_again(run: Path) -> None:
    changed = options(run) | {"callbacks": {"mine": {"_target_": "my.Callback"}}}
    (run / "config.yaml").write_text(yaml.safe_dump(changed))
    config = read_config(run / "config.yaml", ["+callbacks.mine._target_=my.Callback"])
    assert config.callbacks.mine._target_ == "my.Callback"
    assert config.trainer._target_ == "lightning.Trainer"
