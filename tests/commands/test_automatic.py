"""Options that are `auto`: what is chosen on which machine, for which data."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from prefixcap.commands.common import automatic
from prefixcap.store import FeatureStore, StoreSplit
from tests.training.test_training import make_store

Calls = list[Any]


@pytest.fixture
def tf32(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """How float32 products are computed from now on."""
    calls: Calls = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", calls.append)
    return calls


def machine(monkeypatch: pytest.MonkeyPatch, name: str | None, bfloat16: bool = True) -> None:
    monkeypatch.setattr(automatic, "gpu_name", lambda: name)
    monkeypatch.setattr(automatic, "gpu_has_bfloat16", lambda: bfloat16)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")


def options(**changed: Any) -> DictConfig:
    config = OmegaConf.create(
        {
            "trainer": {"accelerator": "auto", "precision": "auto"},
            "data": {"group_captions": "auto"},
            "model": {"learns_from": "images", "objective": "cross_entropy"},
        }
    )
    for option, value in changed.items():
        OmegaConf.update(config, option.replace("__", "."), value)
    return config


@pytest.mark.parametrize(("gpu", "bfloat16", "accelerator", "given", "expected", "uses_tf32"), [
    ("H200", True, "auto", "auto", "bf16-mixed", True),
    ("H200", True, "gpu", "auto", "bf16-mixed", True),
    ("V100", False, "auto", "auto", "32-true", False),
    ("H200", True, "cpu", "auto", "32-true", False),
    (None, False, "auto", "auto", "32-true", False),
    ("H200", True, "auto", "32-true", "32-true", False),  # also that of a run that was begun on a CPU
    ("V100", False, "auto", "16-mixed", "16-mixed", True),
    (None, False, "auto", "bf16-mixed", "bf16-mixed", False),
])  # fmt: skip
def test_precision(
    gpu: str | None, bfloat16: bool, accelerator: str, given: str, expected: str, uses_tf32: bool,
    tf32: Calls, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    machine(monkeypatch, gpu, bfloat16)
    config = options(trainer__accelerator=accelerator, trainer__precision=given)
    assert automatic.choose_precision(config) == expected == config.trainer.precision
    assert tf32 == ["high" if uses_tf32 else "highest"]


@pytest.mark.parametrize(("gpu", "capability", "given", "warns"), [
    (None, "AVX2", "bf16-mixed", True),
    (None, "AVX2", "bf16-true", True),
    (None, "AVX2", "32-true", False),
    (None, "AVX2", "auto", False),
    (None, "AVX512", "bf16-mixed", False),
    ("H200", "AVX2", "bf16-mixed", False),
])  # fmt: skip
def test_bfloat16_on_a_cpu_without_it(
    gpu: str | None, capability: str, given: str, warns: bool, tf32: Calls, monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:  # fmt: skip
    machine(monkeypatch, gpu)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    automatic.choose_precision(options(trainer__precision=given))
    said = [str(warning.message) for warning in recwarn]
    assert said == [f"this CPU has no instructions for bfloat16: trainer.precision={given} takes many times as long "
                    "as trainer.precision=32-true"] * warns  # fmt: skip


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StoreSplit]:
    """Training images with one, and with two captions each."""
    folder = tmp_path_factory.mktemp("stores")
    made = {"one": (("A star.",), ("A ring.",)), "several": (("A star.",), ("A ring.", "A round ring.", "Round."))}
    return {
        name: FeatureStore(make_store(Path(folder / name), captions=own)).split("train") for name, own in made.items()
    }


@pytest.mark.parametrize(("gpu", "captions", "changed", "expected"), [
    ("H200", "several", {}, True),
    ("H200", "one", {}, False),
    (None, "several", {}, False),
    ("H200", "several", {"model__learns_from": "text"}, False),
    ("H200", "several", {"model__objective": "scst"}, False),
    ("H200", "several", {"data__group_captions": False}, False),  # also that of a run that was begun on a CPU
    (None, "one", {"data__group_captions": True}, True),
])  # fmt: skip
def test_grouping(
    gpu: str | None, captions: str, changed: dict[str, Any], expected: bool,
    splits: dict[str, StoreSplit], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    machine(monkeypatch, gpu)
    config = options(**changed)
    phrase = automatic.choose_grouping(config, splits[captions])
    assert config.data.group_captions is expected and ("grouped" in phrase) == expected
