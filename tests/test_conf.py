"""The experiments: each can be composed, and those of MacCap's tables have what the paper says in section 5.1."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from prefixcap.textonly.noise import Noise
from tests.conftest import ROOT

CONF = ROOT / "prefixcap" / "conf"
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


def test_captions_are_written_as_the_paper_says() -> None:
    config = composed("eval", "decode=maccap", "data=coco")
    decode = config.decode
    assert (decode.method, decode.beams, decode.rerank, decode.noise) == ("beam", 4, 20, 0.016)
    assert config.memory_temperature == 0.01  # DeCap, released code
    assert composed("embed", "data=coco").regions == 10  # N_cr
    vqa = composed("vqa")
    assert (vqa.candidates, vqa.sample) == (3128, 20_000)
