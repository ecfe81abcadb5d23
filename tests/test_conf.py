"""The experiments: each can be composed, and those of MacCap's tables have what the paper says in section 5.1."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from prefixcap.commands.compare_systems import SYSTEMS
from prefixcap.noise import Noise
from tests.conftest import ROOT

CONF = ROOT / "conf"
FROZEN = ("maccap", "capdec_frozen", "decap_frozen")  # the rows with a frozen language model
TABLE_5 = ("maccap_single_token", "maccap_single_token_without_noise", "maccap_multiple_tokens_without_noise")


def composed(script: str, *options: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(script, list(options))


@pytest.mark.parametrize("experiment", sorted(file.stem for file in (CONF / "experiment").glob("*.yaml")))
def test_every_experiment_can_be_composed(experiment: str) -> None:
    config = composed("train", f"experiment={experiment}")
    if config.model.noise is not None:
        Noise(**config.model.noise)


@pytest.mark.parametrize("experiment", [*FROZEN, *TABLE_5])
def test_maccap_and_its_baselines_are_trained_as_the_paper_says(experiment: str) -> None:
    config = composed("train", f"experiment={experiment}")
    assert (config.batch_size, config.optimizer.learning_rate) == (128, 4e-4)
    assert (config.lm.name, config.encoder.name) == ("facebook/opt-1.3b", "clip:ViT-B/32")
    assert config.model.lm_tuning == "frozen" and config.model.learns_from == "text"
    assert config.data.reader.max_words == 15
    assert config.trainer.max_epochs == (4 if experiment in TABLE_5 else 8)  # released code, on CC3M and on COCO
    variance, copies = (0.0, None) if config.model.noise is None else (config.model.noise.variance, None)
    if experiment.startswith("maccap"):
        mapper = {"name": "adaptor", "prefix_length": 32, "layers": 1, "heads": 8}  # N_q in the released code
        assert config.model.mapper == mapper
        copies = config.model.noise.copies
    assert variance == (0.0 if "without_noise" in experiment or experiment == "decap_frozen" else 0.016)
    assert copies == (None if experiment in FROZEN[1:] else 1 if "single" in experiment else 10)  # N_cr
    assert config.trainer.gradient_clip_val == 1.0  # released code
    assert not config.model.start_token and not config.released_tokens and config.max_caption_tokens is None


@pytest.mark.parametrize("experiment", FROZEN)
def test_released_experiments_differ_from_the_papers_in_their_tokens(experiment: str) -> None:
    released, paper = (composed("train", f"experiment={name}") for name in (f"{experiment}_released", experiment))
    assert released.model.start_token and released.released_tokens
    assert released.max_caption_tokens + 1 == 25  # max_seq_len, the start token included
    for option, value in (("model.start_token", False), ("released_tokens", False), ("max_caption_tokens", None)):
        OmegaConf.update(released, option, value)
    released.name = paper.name
    for config in (released, paper):
        config.run_dir = "runs/of-now"
    assert released == paper


def test_captions_are_written_as_the_paper_says() -> None:
    config = composed("eval", "decode=maccap", "data=coco")
    decode = config.decode
    assert (decode.method, decode.beams, decode.rerank, decode.noise) == ("beam", 4, 20, 0.016)
    assert (decode.max_tokens, decode.clean, decode.unit_parts, decode.rerank_characters) == (67, False, False, None)
    released = composed("eval", "decode=maccap_released", "data=coco").decode
    assert (released.max_tokens, released.clean, released.unit_parts, released.rerank_characters) == (
        16,
        True,
        True,
        80,
    )
    assert (released.method, released.beams, released.rerank, released.noise) == ("beam", 4, 20, 0.016)
    assert config.memory_temperature == 0.01  # DeCap, released code
    assert composed("embed", "data=coco").regions == 10  # N_cr
    vqa = composed("vqa")
    assert (vqa.candidates, vqa.sample) == (3128, 20_000)


def test_capdec_and_decap_are_trained_and_decoded_as_their_own_code_does() -> None:
    capdec, decap = (composed("train", f"experiment={name}") for name in ("capdec", "decap"))
    assert (capdec.batch_size, capdec.trainer.devices) == (34, 1)
    assert (decap.batch_size, decap.trainer.devices) == (2 * 64, 1)  # captions a step
    capdec, decap = (
        composed("eval", *(option for option in SYSTEMS[name].evaluate if option.startswith("decode"))).decode
        for name in ("CapDec, tuned GPT-2", "DeCap, own language model")
    )
    assert (capdec.method, capdec.beams, capdec.stop, capdec.max_tokens) == ("clipcap", 5, ".", 67)
    assert (decap.method, decap.max_tokens) == ("greedy", 30)


def test_systems_of_the_comparison_can_be_composed() -> None:
    for name, system in SYSTEMS.items():
        if system.learner is not None:
            composed("train", f"experiment={system.learner}", *system.train)
        options = [option.replace("MEMORY", "m").replace("LANGUAGE_MODEL", "l") for option in system.evaluate]
        assert composed("eval", "data=coco", *options) is not None, name
