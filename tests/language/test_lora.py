"""Adapters: against the sum of weights worked out by hand; what is trained, saved, merged, refused."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

import prefixcap
from prefixcap.captioner import Captioner
from prefixcap.decoding import DECODERS
from prefixcap.errors import InputError
from prefixcap.language import load_language_model
from prefixcap.language.lora import Lora
from tests.language_models import KINDS, captioner_of, save_language_model, some_batch
from tests.test_captioner import checkpoint
from tests.training.test_training import fit, make_store


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {kind: save_language_model(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


def adapted(folder: str, **options: Any) -> Captioner:
    """A captioner with adapters, as if they had been trained."""
    captioner = captioner_of(load_language_model(folder, "lora", lora=Lora(**options)))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in captioner.language_model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return captioner


def linear_layers(model: PreTrainedModel) -> set[str]:
    """Names of all linear layers but the output head."""
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not model.get_output_embeddings()
    }


def logits(model: nn.Module, embeddings: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(inputs_embeds=embeddings).logits
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_adds_a_product_of_low_rank(kind: str, folders: dict[str, str]) -> None:
    lm = adapted(folders[kind], rank=4, alpha=12).language_model
    weights = dict(lm.model.named_parameters())
    plain = AutoModelForCausalLM.from_pretrained(folders[kind]).eval()
    embeddings = torch.randn(3, 7, lm.dim)
    before = logits(plain, embeddings)
    layers = linear_layers(plain)
    assert layers == {name.removesuffix(".lora_A.default.weight") for name in weights if "lora_A" in name}
    with torch.no_grad():
        for name in layers:
            down, up = (weights[f"{name}.lora_{part}.default.weight"] for part in "AB")
            assert down.shape[0] == up.shape[1] == 4
            product = up @ down * (12 / 4)
            layer = plain.get_submodule(name)
            layer.weight.add_(product.T if isinstance(layer, Conv1D) else product)
    torch.testing.assert_close(logits(lm.model, embeddings), logits(plain, embeddings), atol=1e-4, rtol=1e-4)
    assert (logits(plain, embeddings) - before).abs().mean() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_new_adapters_change_nothing_and_alone_take_a_gradient(kind: str, folders: dict[str, str]) -> None:
    captioner = captioner_of(load_language_model(folders[kind], "lora"))
    frozen = captioner_of(load_language_model(folders[kind]))
    batch = some_batch(captioner.language_model)
    torch.testing.assert_close(captioner.loss(batch), frozen.loss(batch))
    captioner.train()
    assert captioner.language_model.model.training
    captioner.loss(batch).backward()
    for name, weight in captioner.named_parameters():
        assert (weight.grad is not None) == (name.startswith("mapper.") or "lora_" in name), name
        if "lora_B" in name:
            assert weight.grad is not None and weight.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_holds_mapper_and_adapters_alone(kind: str, folders: dict[str, str], tmp_path: Path) -> None:
    captioner = adapted(folders[kind], rank=2, target_modules=["c_attn"] if kind == "gpt2" else ["q_proj", "v_proj"])
    path = checkpoint(captioner, tmp_path / "model.ckpt")
    content = torch.load(path, weights_only=True)
    names = content["state_dict"].keys()
    adapters = {name for name in names if not name.startswith("captioner.mapper.")}
    assert len(adapters) == (1 if kind == "gpt2" else 2) * 2 * 2  # layers of two blocks, A and B
    assert all(".lora_A." in name or ".lora_B." in name for name in adapters)
    numbers = sum(content["state_dict"][name].numel() for name in adapters)
    assert (
        numbers
        == {"gpt2": 2 * 2 * (64 + 192), "opt": 2 * 2 * 2 * (64 + 64), "llama": 2 * 2 * (64 + 64 + 64 + 32)}[kind]
    )
    loaded = prefixcap.load(path)
    assert loaded.describe() == captioner.describe()
    embeddings = torch.randn(4, 16)
    assert loaded.caption(embeddings, max_tokens=8) == captioner.caption(embeddings, max_tokens=8)
    plain = captioner_of(load_language_model(folders[kind]))
    assert plain.caption(embeddings, max_tokens=8) != captioner.caption(embeddings, max_tokens=8)


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_is_merged_and_the_captioner_is_not(kind: str, folders: dict[str, str], tmp_path: Path) -> None:
    captioner = adapted(folders[kind])
    names = set(captioner.state_dict())
    lm = captioner.language_model
    embeddings = torch.randn(2, 9, lm.dim)
    before = logits(lm.model, embeddings)
    captioner.save_pretrained(tmp_path)
    assert set(captioner.state_dict()) == names
    assert torch.equal(logits(lm.model, embeddings), before)

    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "language_model").eval()
    original = AutoModelForCausalLM.from_pretrained(folders[kind])
    assert opened.state_dict().keys() == original.state_dict().keys()
    scale = before.abs().max()
    torch.testing.assert_close(logits(opened, embeddings) / scale, before / scale, atol=1e-5, rtol=0)

    loaded = prefixcap.load(tmp_path)
    assert loaded.language_model.tuning == "full" and loaded.language_model.name == folders[kind]
    images = torch.randn(3, 16)
    for decode in DECODERS:
        options = {"seed": 5} if decode == "nucleus" else {}
        expected = captioner.caption(images, decode, max_tokens=8, **options)
        assert loaded.caption(images, decode, max_tokens=8, **options) == expected, decode


def test_adapters_on_a_half_precision_model_are_trained_in_full(folders: dict[str, str]) -> None:
    captioner = captioner_of(load_language_model(folders["opt"], "lora", "bfloat16"))
    dtypes = {weight.dtype for name, weight in captioner.checkpoint_state_dict().items()}
    assert dtypes == {torch.float32}
    captioner.loss(some_batch(captioner.language_model)).backward()
    assert captioner.language_model.describe()["dtype"] == "bfloat16"
    captioner.caption(torch.randn(2, 16), max_tokens=4)


def test_training_adapters_learns_and_resumes(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")

    def fresh() -> Captioner:
        return captioner_of(load_language_model("demo", "lora", lora=Lora(dropout=0.1))).train()

    fit(fresh(), store, tmp_path / "run", 2)
    halfway = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert {"language_model", "mapper"} == {name.split(".")[1] for name in halfway["state_dict"]}
    trained, trainer = fit(fresh(), store, tmp_path / "run", 4, tmp_path / "run" / "last.ckpt")
    assert trainer.global_step == 2 * halfway["global_step"]
    assert trainer.callback_metrics["train_loss"] < 3.5  # of about 5 before
    base = load_language_model("demo").model.state_dict()
    for name, weight in trained.language_model.model.state_dict().items():
        if ".lora_" not in name:
            assert torch.equal(weight, base[name.replace(".base_layer", "")]), name
    loaded = prefixcap.load(tmp_path / "run" / "last.ckpt")
    embeddings = torch.randn(4, 16)
    assert loaded.caption(embeddings, max_tokens=12) == trained.caption(embeddings, max_tokens=12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "positive integer"),
        ({"rank": "many"}, "GPT2LMHeadModel with Lora"),
        ({"dropout": 1.5}, "probability"),
        ({"target_modules": ["q_proj"]}, "q_proj.*not found"),
        ({"target_modules": ["lm_head"]}, "output head.*takes no adapter"),
    ],
)
def test_options_that_do_not_fit_are_told(options: dict[str, Any], message: str, folders: dict[str, str]) -> None:
    with pytest.raises(InputError, match=message):
        load_language_model(folders["gpt2"], "lora", lora=Lora(**options))


def test_peft_is_asked_for_by_name(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"need peft: pip install 'prefixcap\[lora\]'"):
        load_language_model(folders["gpt2"], "lora")
