"""A run that starts from another captioner: which of its parts it keeps, and that their weights are its own."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import prefixcap
from prefixcap.captioner import Captioner
from prefixcap.commands.common.conf import config_folder
from prefixcap.commands.common.starting import Start
from prefixcap.commands.train import build_language_model
from prefixcap.encoders import load_encoder
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity
from prefixcap.language import load_language_model
from tests.conftest import ROOT
from tests.processes import python
from tests.training.test_training import make_store

DEMO = load_encoder("demo").identity


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the small world's language model."""
    folder = tmp_path_factory.mktemp("lm") / "model"
    load_language_model("demo").save_pretrained(folder)
    return str(folder)


def captioner(language_model: str, tuning: Any, **options: Any) -> Captioner:
    """One with random weights, but for those of the language model's folder if it is frozen."""
    torch.manual_seed(0)
    mapper = {"name": "mlp", "prefix_length": 3, "hidden": [20]}
    made = Captioner(load_language_model(language_model, tuning), DEMO, mapper, True, rerank=5, **options)
    for name, weight in made.checkpoint_state_dict().items():
        if name.startswith("language_model."):
            weight.data.add_(torch.randn_like(weight) / 50)
    return made


def checkpoint(made: Captioner, path: Path) -> str:
    """A checkpoint, as training writes it."""
    weights = {f"captioner.{name}": weight for name, weight in made.checkpoint_state_dict().items()}
    torch.save({"prefixcap": made.describe(), "state_dict": weights}, path)
    return str(path)


def started(start: str, *overrides: str, encoder: EncoderIdentity = DEMO) -> tuple[Captioner, str]:
    """The captioner of a run that starts from another, as `train` builds it, and the line that is printed."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = compose("train", [f"start={start}", *overrides])
    begin = Start(start)
    begin.adopt(config, overrides)
    mapper: Any = OmegaConf.to_container(config.model.mapper)
    made = Captioner(
        build_language_model(config, begin), encoder, mapper, config.model.normalize_embeddings,
        start_token=config.model.start_token,
    )  # fmt: skip
    return made, begin.load_into(made)


@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
@pytest.mark.parametrize("form", ["checkpoint", "folder"])
def test_everything_is_kept_unless_something_is_chosen(
    tuning: str, form: str, language_model: str, tmp_path: Path
) -> None:
    before = captioner(language_model, tuning, start_token=True).eval()
    start = checkpoint(before, tmp_path / "best.ckpt")
    if form == "folder":
        before.save_pretrained(tmp_path / "folder")
        start = str(tmp_path / "folder")
    if tuning == "full":
        shutil.move(language_model, tmp_path / "away")  # it is not needed
    try:
        after, line = started(start)
    finally:
        if tuning == "full":
            shutil.move(tmp_path / "away", language_model)
    assert line.startswith(f"starting from {start}: keeps encoder demo, mapper mlp, language model ")
    assert "new" not in line
    assert (after.mapper_options, after.normalize_embeddings) == (before.mapper_options, True)
    assert (after.start_token, after.rerank) == (True, 5)
    assert after.language_model.tuning == ("full" if (tuning, form) == ("lora", "folder") else tuning)
    embeddings = torch.randn(4, DEMO.dim)
    kept = after.eval().caption(embeddings, "beam", max_tokens=12, rerank=0)
    assert kept == before.caption(embeddings, "beam", max_tokens=12, rerank=0)
    torch.testing.assert_close(after.prefix(embeddings), before.prefix(embeddings), rtol=0, atol=0)


def test_another_mapper_leaves_the_language_model_as_it_was_tuned(language_model: str, tmp_path: Path) -> None:
    before = captioner(language_model, "full")
    start = checkpoint(before, tmp_path / "best.ckpt")
    after, line = started(start, "model.mapper.prefix_length=4")
    assert line.endswith(f"keeps encoder demo, language model {language_model}; new: mapper mlp")
    assert after.mapper_options == before.mapper_options | {"prefix_length": 4}
    assert after.rerank == 0
    torch.testing.assert_close(after.language_model.state_dict(), before.language_model.state_dict(), rtol=0, atol=0)

    after, line = started(start, "model=query", "model.lm_tuning=full")
    assert line.endswith("new: mapper query") and not after.normalize_embeddings  # as the group chooses


def test_another_encoder_needs_another_mapper(language_model: str, tmp_path: Path) -> None:
    start = checkpoint(captioner(language_model, "full"), tmp_path / "best.ckpt")
    other = EncoderIdentity("clip:other.pt", "ab" * 32, "as it is", DEMO.dim)
    _, line = started(start, "encoder.name=clip:other.pt", encoder=other)
    assert line.endswith(f"keeps language model {language_model}; new: encoder clip:other.pt, mapper mlp")
    with pytest.raises(InputError, match=r"encoder 'demo' of other weights \(abababab\).*embed them again"):
        started(start, encoder=replace(DEMO, digest="ab" * 32))


def test_a_tuned_language_model_with_adapters(language_model: str, tmp_path: Path) -> None:
    """Its folder holds what adapters are added to, and a checkpoint does not."""
    before = captioner(language_model, "full")
    start = checkpoint(before, tmp_path / "best.ckpt")
    with pytest.raises(InputError, match=r"set model\.lm_tuning=full, or give start=FOLDER after prefixcap export"):
        started(start, "model.lm_tuning=lora")
    before.save_pretrained(tmp_path / "folder")
    after, line = started(str(tmp_path / "folder"), "model.lm_tuning=lora", "lm.lora.rank=2")
    assert "; new" not in line and after.language_model.lora.rank == 2
    again = prefixcap.load(checkpoint(after, tmp_path / "again.ckpt"))
    embeddings = torch.randn(3, DEMO.dim)
    assert again.caption(embeddings, max_tokens=9, rerank=0) == before.caption(embeddings, max_tokens=9, rerank=0)


def test_adapters_of_another_size_are_refused(language_model: str, tmp_path: Path) -> None:
    start = checkpoint(captioner(language_model, "lora"), tmp_path / "best.ckpt")
    with pytest.raises(InputError, match=r"nothing that .* is kept"):
        started(start, "lm.lora.rank=2")


def test_a_start_of_which_nothing_is_left(language_model: str, tmp_path: Path) -> None:
    start = checkpoint(captioner(language_model, "frozen"), tmp_path / "best.ckpt")
    with pytest.raises(InputError, match=r"nothing that .*best\.ckpt learned is kept .*leave start= out"):
        started(start, "model.mapper.prefix_length=5")


def test_a_run_from_a_tuned_captioner_is_continued(language_model: str, tmp_path: Path) -> None:
    """Its language model can be loaded by no name any more; and it is known what it learned from at first."""
    folder = tmp_path / "model"
    shutil.copytree(language_model, folder)
    before = captioner(str(folder), "full", trained_on={"data": "birds", "before": ["animals"]})
    start = checkpoint(before, tmp_path / "best.ckpt")
    shutil.rmtree(folder)
    options = [
        "data=coco", f"data.store={make_store(tmp_path / 'store', DEMO)}", "optimizer.learning_rate=1e-12",
        "optimizer.warmup_steps=0", "batch_size=4", f"run_dir={tmp_path / 'run'}", "+trainer.limit_train_batches=2",
        "+trainer.limit_val_batches=1", "trainer.max_epochs=1",
    ]  # fmt: skip
    process = python(ROOT / "train.py", f"start={start}", *options)
    assert process.returncode == 0, process.stderr
    assert f"keeps encoder demo, mapper mlp, language model {folder}" in process.stdout
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    process = python(ROOT / "train.py", f"ckpt={last}", "trainer.max_epochs=2")
    assert process.returncode == 0, process.stderr
    after = prefixcap.load(last)
    assert (after.trained_on["before"], after.trained_on["data"]) == (["animals", "birds"], "coco")
    torch.testing.assert_close(after.checkpoint_state_dict(), before.checkpoint_state_dict(), rtol=0, atol=1e-9)


def test_prompts_are_kept_unless_others_are_chosen(language_model: str, tmp_path: Path) -> None:
    description = {"name": "clip_entities", "vocabulary": ["dog", "red circle"], "max_prompt_tokens": 9}
    before = captioner(language_model, "frozen")
    before.use_prompts(description)
    begin = Start(checkpoint(before, tmp_path / "best.ckpt"))
    for chosen, kept in (([], description), (["~prompts"], None)):
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            config = compose("train", [f"start={begin.name}", *chosen])
        begin.adopt(config, chosen)
        assert config.get("prompts") == kept
