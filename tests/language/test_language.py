"""Loading language models: precision, quantized weights, checkpointed layers, and descriptions of older checkpoints."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

import prefixcap
from prefixcap.errors import InputError
from prefixcap.language import Dtype, LanguageModel, load_language_model, rebuild_language_model
from prefixcap.language.lora import Lora
from prefixcap.utils.options import Quantization
from tests.language_models import KINDS, captioner_of, save_language_model, some_batch
from tests.test_captioner import checkpoint


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {kind: save_language_model(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_language_model_in_half_precision_under_a_whole_mapper(
    kind: str, dtype: Dtype, folders: dict[str, str], tmp_path: Path
) -> None:
    whole = captioner_of(load_language_model(folders[kind]))
    half = captioner_of(load_language_model(folders[kind], dtype=dtype))
    weights = dict(half.language_model.named_parameters())
    assert {weight.dtype for weight in weights.values()} == {getattr(torch, dtype)}
    for name, weight in whole.language_model.named_parameters():
        assert torch.equal(weights[name], weight.to(getattr(torch, dtype))), name

    batch = some_batch(whole.language_model)
    losses = {captioner: captioner.loss(batch) for captioner in (whole, half)}
    assert losses[half].dtype == torch.float32
    torch.testing.assert_close(losses[half], losses[whole], rtol=0.05, atol=0)
    for captioner, loss in losses.items():
        loss.backward()
        assert {weight.grad.dtype for weight in captioner.mapper.parameters() if weight.grad is not None} == {
            torch.float32
        }
    ours, theirs = (torch.cat([w.grad.flatten() for w in c.mapper.parameters()]) for c in (half, whole))  # type: ignore[union-attr]
    assert torch.cosine_similarity(ours, theirs, dim=0) > 0.95

    loaded = prefixcap.load(checkpoint(half, tmp_path / "half.ckpt"))
    assert loaded.language_model.dtype == dtype and loaded.language_model.model.dtype == getattr(torch, dtype)
    images = torch.randn(4, 16)
    for decode in ("greedy", "beam", "contrastive"):
        assert loaded.caption(images, decode, max_tokens=8) == half.caption(images, decode, max_tokens=8)


def test_a_half_precision_model_that_was_tuned_whole_is_saved_in_it(folders: dict[str, str], tmp_path: Path) -> None:
    captioner = captioner_of(load_language_model(folders["llama"], "full", "bfloat16"))
    captioner.save_pretrained(tmp_path / "exported")
    for path in (checkpoint(captioner, tmp_path / "model.ckpt"), tmp_path / "exported"):
        loaded = prefixcap.load(path)
        assert {weight.dtype for weight in loaded.language_model.parameters()} == {torch.bfloat16}
        assert loaded.checkpoint_state_dict().keys() == captioner.checkpoint_state_dict().keys()
        for name, weight in captioner.checkpoint_state_dict().items():
            assert torch.equal(loaded.checkpoint_state_dict()[name], weight)


def test_older_checkpoints_say_neither_precision_nor_quantization(folders: dict[str, str], tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folders["opt"], dtype=torch.bfloat16).save_pretrained(tmp_path)
    load_language_model(folders["opt"]).tokenizer.save_pretrained(tmp_path)
    frozen = rebuild_language_model({"name": str(tmp_path), "tuning": "frozen"})
    files = load_language_model(str(tmp_path), "full").describe()["files"]
    tuned = rebuild_language_model({"name": "gone", "tuning": "full", "files": files})
    for lm in (frozen, tuned):
        assert lm.dtype == "float32" and lm.quantization is None
        assert {weight.dtype for weight in lm.parameters()} == {torch.float32}


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
@pytest.mark.parametrize("kind", KINDS)
def test_quantized_weights(kind: str, quantization: Quantization, folders: dict[str, str], tmp_path: Path) -> None:
    """With bitsandbytes itself, on the CPU."""
    lm = load_language_model(folders[kind], dtype="bfloat16", quantization=quantization)
    layers = [module for module in lm.modules() if type(module).__module__.startswith("bitsandbytes.nn")]
    assert len(layers) == 2 * {"gpt2": 4, "opt": 6, "llama": 7}[kind]
    assert {layer.weight.dtype for layer in layers} == {torch.int8 if quantization == "8bit" else torch.uint8}
    if quantization == "4bit":
        assert {layer.weight.quant_type for layer in layers} == {"nf4"}
        assert all(layer.weight.quant_state.nested for layer in layers)
        assert {layer.compute_dtype for layer in layers} == {torch.bfloat16}

    quantized = captioner_of(lm)
    path = checkpoint(quantized, tmp_path / "model.ckpt")
    assert all(name.startswith("captioner.mapper.") for name in torch.load(path, weights_only=True)["state_dict"])
    loaded = prefixcap.load(path)
    assert loaded.language_model.describe() == lm.describe()
    assert lm.describe() == {
        "name": folders[kind], "tuning": "frozen", "dtype": "bfloat16", "quantization": quantization,
    }  # fmt: skip
    images = torch.randn(3, 16)
    assert loaded.caption(images, max_tokens=6) == quantized.caption(images, max_tokens=6)


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_go_through_quantized_weights(kind: str, quantization: Quantization, folders: dict[str, str]) -> None:
    """They are those of a model with the rounded weights; LLM.int8() rounds what it reads, too."""
    quantized = captioner_of(load_language_model(folders[kind], quantization=quantization))
    rounded = captioner_of(load_language_model(folders[kind]))
    for name, layer in quantized.language_model.model.named_modules():
        if type(layer).__module__.startswith("bitsandbytes.nn"):
            if quantization == "8bit":
                weight = layer.weight.CB * layer.weight.SCB[:, None] / 127
            else:
                weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            plain = rounded.language_model.model.get_submodule(name)
            plain.weight.data = weight.T if kind == "gpt2" else weight
    images, batch = torch.randn(3, 16), some_batch(rounded.language_model)
    tolerance = 1e-4 if quantization == "4bit" else 0.15
    for _ in range(2):  # captions are written between the steps of training
        found, expected = quantized.loss(batch), rounded.loss(batch)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)
        gradients = torch.autograd.grad(found, list(quantized.mapper.parameters()))
        of_rounded = torch.autograd.grad(expected, list(rounded.mapper.parameters()))
        for ours, theirs in zip(gradients, of_rounded, strict=True):
            assert (ours - theirs).norm() < tolerance * theirs.norm()
        quantized.caption(images, "greedy", max_tokens=4)


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_adapters_on_quantized_weights(quantization: Quantization, folders: dict[str, str], tmp_path: Path) -> None:
    lm = load_language_model(folders["gpt2"], "lora", "bfloat16", quantization, Lora(rank=2))
    captioner = captioner_of(lm)
    batch = some_batch(lm)
    optimizer = torch.optim.AdamW([weight for weight in captioner.parameters() if weight.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        losses.append(captioner.loss(batch))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    loaded = prefixcap.load(checkpoint(captioner, tmp_path / "model.ckpt"))
    torch.testing.assert_close(loaded.loss(batch), captioner.loss(batch))
    with pytest.raises(InputError, match=f"cannot be merged into the {quantization} .*train without quantization"):
        captioner.save_pretrained(tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_quantization_and_bitsandbytes_are_asked_for_by_name(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match=r"quantization='4bit' needs bitsandbytes: pip install 'prefixcap\[quant"):
        load_language_model(folders["gpt2"], quantization="4bit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bf16"}, "unknown dtype 'bf16': choose one of float32, bfloat16, float16"),
        ({"quantization": 4}, "unknown quantization '4': choose 8bit or 4bit, or leave it out"),
        (
            {"tuning": "full", "quantization": "8bit"},
            "8bit weights cannot be trained, only adapters.*: set tuning='lora'",
        ),
    ],
)
def test_options_that_do_not_fit_are_told(options: dict[str, Any], message: str, folders: dict[str, str]) -> None:
    with pytest.raises(InputError, match=message):
        load_language_model(folders["gpt2"], **options)


def gradients_and_kept(lm: LanguageModel) -> tuple[list[Tensor], int]:
    """Gradients of a captioner over `lm`, and how many numbers it keeps for its backward pass."""
    captioner = captioner_of(lm).train()
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * (not isinstance(tensor, torch.nn.Parameter))
        return tensor

    torch.manual_seed(4)  # of dropout
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = captioner.loss(some_batch(lm))
    loss.backward()
    return [weight.grad for weight in captioner.parameters() if weight.grad is not None], kept


@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpointed_layers_keep_less_and_give_the_same_gradients(
    kind: str, tuning: Any, folders: dict[str, str]
) -> None:
    lms = []
    for gradient_checkpointing in (False, True):
        torch.manual_seed(7)  # of new adapters
        lms.append(load_language_model(folders[kind], tuning, gradient_checkpointing=gradient_checkpointing))
    (expected, all_kept), (found, kept) = map(gradients_and_kept, lms)
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert kept < 0.7 * all_kept  # what layers keep is not all


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointed_layers_put_each_key_into_a_cache_once(kind: str, folders: dict[str, str]) -> None:
    steps = []
    for gradient_checkpointing in (False, True):
        lm = load_language_model(folders[kind], gradient_checkpointing=gradient_checkpointing).train()
        cache = DynamicCache()
        embeddings = torch.randn(2, 5, lm.dim, generator=torch.Generator().manual_seed(6)).requires_grad_()
        lm.step(embeddings, cache).sum().backward()
        assert embeddings.grad is not None and cache.get_seq_length() == 5
        steps.append((embeddings.grad, lm.step(embeddings[:, :1].detach(), cache)))
    torch.testing.assert_close(steps[0], steps[1])


def test_a_captioner_with_checkpointed_layers_is_exported(folders: dict[str, str], tmp_path: Path) -> None:
    captioner = captioner_of(load_language_model(folders["opt"], "lora", gradient_checkpointing=True))
    captioner.save_pretrained(tmp_path)
    images = torch.randn(3, 16)
    assert prefixcap.load(tmp_path).caption(images, max_tokens=6) == captioner.caption(images, max_tokens=6)
