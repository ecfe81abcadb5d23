"""Cross-attention of a language model's layers to images, beside transformers' own in GPT-2 and rows read alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import prefixcap
from prefixcap.captioner import Captioner
from prefixcap.captioner.beside import captions_beside, decoder_inputs
from prefixcap.decoding import decode
from prefixcap.decoding.cache import KeyValueCache
from prefixcap.decoding.padded import PaddedPrefix, pad_left
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity
from prefixcap.language import LanguageModel, load_language_model, load_tokenizer
from prefixcap.language.cross_attention import attending
from prefixcap.language.quantization import checkpoint_layers
from prefixcap.mappers import CrossAttentionMapper
from prefixcap.packing import BatchShape, pack
from prefixcap.store import ImageRecord, StoreWriter, join
from prefixcap.training import trainable_parameters
from prefixcap.training.distributed import FSDP2Strategy
from prefixcap.training.objectives import SelfCritical
from tests.conftest import IDENTITY, slow_after, small_lm
from tests.decoding import random_lm
from tests.decoding.test_captured import METHODS, OneWord, Tape, decode_eagerly, liked_end, options_of
from tests.decoding.test_captured import tapes as tapes
from tests.language.kinds import ACCEPTED, REFUSED, tiny_model
from tests.test_packed_prompts import assert_close, losses_and_gradients, packed, some_prompts
from tests.test_packing import OWNERS, some_captions
from tests.training.test_training import CAPTIONS, fit

THIN: dict[str, Any] = {"name": "cross_attention", "head_dim": 2}
PROMPTS = ["", "A red star", "A", "A blue ring and a red star in the snow", "A tree"]


def captioner_of(lm: LanguageModel, **options: Any) -> Captioner:
    """With adapters that matter: as they are made, they change little."""
    captioner = Captioner(lm, IDENTITY, THIN | options, start_token=True).eval()
    with torch.no_grad():
        for weight in captioner.mapper.parameters():
            weight.normal_(std=0.4)
    return captioner


def transformers_own(captioner: Captioner) -> GPT2LMHeadModel:
    """GPT-2 with transformers' own cross-attention and the same weights; adapters must be as wide as its layers."""
    lm, mapper = captioner.language_model.model, captioner.mapper
    assert isinstance(mapper, CrossAttentionMapper)
    options = lm.config.to_dict() | {"add_cross_attention": True, "is_decoder": True}
    model = GPT2LMHeadModel(GPT2Config(**options)).to(next(lm.parameters()).dtype).eval()
    weights = dict(lm.state_dict())
    for number, adapter in enumerate(mapper.adapters):
        at = f"transformer.h.{number}"
        for theirs, ours in (("q_attn", "query"), ("c_attn", "key_value"), ("c_proj", "output")):
            linear = getattr(adapter, ours)
            weights[f"{at}.crossattention.{theirs}.weight"] = linear.weight.T
            weights[f"{at}.crossattention.{theirs}.bias"] = linear.bias
        weights[f"{at}.ln_cross_attn.weight"] = torch.ones(lm.config.n_embd)
        weights[f"{at}.ln_cross_attn.bias"] = torch.zeros(lm.config.n_embd)
    model.load_state_dict(weights)
    return model


def as_wide_as_gpt2(dtype: torch.dtype = torch.float64) -> tuple[Captioner, GPT2LMHeadModel]:
    identity = replace(IDENTITY, dim=32)  # transformers' keys are of the decoder's width
    captioner = Captioner(small_lm(), identity, THIN | {"head_dim": 8}, start_token=True).eval()
    with torch.no_grad():
        for weight in captioner.mapper.parameters():
            weight.normal_(std=0.4)
    captioner.to(dtype)
    return captioner, transformers_own(captioner)


def logits_by_transformers(model: GPT2LMHeadModel, image: Tensor, tokens: list[int]) -> Tensor:
    """(L, V) logits of a text, (K, D) image: read at once, without a cache."""
    read: Tensor = model(input_ids=torch.tensor([tokens]), encoder_hidden_states=image[None], use_cache=False).logits[0]
    return read


def test_losses_are_those_of_transformers_own_cross_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed captions of ten images with prompts, each beside one that is read alone."""
    monkeypatch.setattr("prefixcap.packing._ROW", 60)
    captioner, model = as_wide_as_gpt2()
    images, captions, prompts = torch.randn(10, 7, 32).double(), some_captions(40), some_prompts()
    start = [captioner.language_model.start_token]
    expected = []
    for owner, caption in zip(OWNERS, captions, strict=True):
        logits = logits_by_transformers(model, images[owner], start + prompts[owner] + caption[:-1])
        expected.append(F.cross_entropy(logits[-len(caption) :], torch.tensor(caption), reduction="none"))
    batch = pack(images, captions, OWNERS, 1, prompts=prompts)
    assert len(batch.images) > 1
    actual = packed(captioner, replace(batch, embeddings=batch.embeddings.double()))
    torch.testing.assert_close(actual, torch.cat(expected), rtol=1e-5, atol=1e-5)  # images are read as float32


@torch.no_grad()
def test_greedy_captions_are_those_of_transformers_own_cross_attention() -> None:
    """With a cache, in one batch of prompts of different lengths, beside one that reads all again for each token."""
    captioner, model = as_wide_as_gpt2(torch.float32)
    lm, images = captioner.language_model, torch.randn(len(PROMPTS), 7, 32)
    captions = captions_beside(captioner, images, PROMPTS, [], "greedy", 1, {"max_tokens": 9})
    for image, prompt, (caption,) in zip(images, PROMPTS, captions, strict=True):
        tokens = [lm.start_token, *lm.tokenize_prompt(prompt)]
        read = len(tokens)
        while len(tokens) - read < 9:
            token = int(logits_by_transformers(model, image, tokens)[-1].argmax())
            if token == lm.eos_token_id:
                break
            tokens.append(token)
        assert caption == tokens[read:]
    others = captions_beside(captioner, images.flip(0), PROMPTS, [], "greedy", 1, {})
    assert captions != others, "captions must depend on images"


@pytest.mark.parametrize("shape", [None, BatchShape(12, 8, 72, 400, 400)])
@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
def test_losses_and_gradients_are_those_of_a_plain_loop(
    kind: str, shape: BatchShape | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In rows of several images, which may be padded to a shape, beside batches of one caption."""
    monkeypatch.setattr("prefixcap.packing._ROW", 60)
    captioner = captioner_of(random_lm(kind, 0, words=470).requires_grad_(True)).double()
    images, captions, prompts = torch.randn(10, 5, 16), some_captions(40), some_prompts()
    losses = []
    for owner, caption in zip(OWNERS, captions, strict=True):
        one = pack(images[owner : owner + 1], [caption], [0], 1, prompts=[prompts[owner]])
        assert one.images.unique().tolist() in ([0], [-1, 0]) and len(one.images) == 1
        losses.append(packed(captioner, one))
    expected = losses_and_gradients(captioner, torch.cat(losses))
    batch = pack(images, captions, OWNERS, 1, prompts=prompts)
    assert len(batch.images) > 1
    batch = batch if shape is None else batch.padded(shape)
    actual = packed(captioner, batch)
    assert_close(losses_and_gradients(captioner, actual[: len(torch.cat(losses))]), expected, kind)


def test_layers_that_are_recomputed_have_the_same_gradients() -> None:
    captioner = captioner_of(small_lm()).double()
    batch = pack(torch.randn(10, 5, 16), some_captions(40), OWNERS, 1, prompts=some_prompts())
    expected = losses_and_gradients(captioner, packed(captioner, batch))
    checkpoint_layers(captioner.language_model.model)
    assert_close(losses_and_gradients(captioner, packed(captioner, batch)), expected)


@pytest.mark.parametrize(("method", "options"), [*METHODS, ("contrastive", {}), ("contrastive", {"penalty": 0.9})])
@pytest.mark.parametrize("kind", slow_after(1, ["gpt2", "opt", "llama"]))
@torch.no_grad()
def test_a_batch_gives_what_single_images_give(kind: str, method: str, options: dict[str, Any]) -> None:
    """With prompts of different lengths: rows are repeated, reordered and dropped, each with its image."""
    captioner = captioner_of(random_lm(kind, 0, words=470)).double()
    lm, images = captioner.language_model, torch.randn(len(PROMPTS), 5, 16)
    lm.eos_token_id = liked_end(lm, torch.randn(8, 3, 32, dtype=torch.float64))
    if method.startswith("clipcap"):
        lm.tokenizer = OneWord(lm.eos_token_id)
    prompts = [torch.randint(1, 40, (length,)).tolist() for length in (5, 0, 2, 9, 2)]
    one_after_another = options_of(method, options)  # a generator goes on to draw the next image's numbers
    expected = []
    for row, prompt in enumerate(prompts):
        alone = pad_left(decoder_inputs(captioner, images[row : row + 1]), [prompt], lm)
        expected.append(decode(lm, alone, method, max_tokens=12, **one_after_another)[0])
    padded = pad_left(decoder_inputs(captioner, images), prompts, lm)
    assert decode(lm, padded, method, max_tokens=12, **options_of(method, options)) == expected
    assert isinstance(padded, PaddedPrefix)
    without = replace(padded, memory=None)
    assert decode(lm, without, method, max_tokens=12, **options_of(method, options)) != expected


KINDS = [kind for kind in ACCEPTED if kind != "ctrl"]  # whose layers are not marked


@pytest.mark.parametrize(("method", "options"), slow_after(5, METHODS))
def test_captured_searches_attend_to_images(method: str, options: dict[str, Any], tapes: list[Tape]) -> None:
    """Those of later batches, too, smaller ones, and of another captioner with the same language model."""
    lm = random_lm("gpt2", 0, words=470).double()
    captioners = [captioner_of(lm).double() for _ in range(2)]
    lm.eos_token_id = liked_end(lm, torch.randn(8, 3, 32, dtype=torch.float64))
    if method.startswith("clipcap"):
        lm.tokenizer = OneWord(lm.eos_token_id)
    with torch.inference_mode():
        for captioner, sizes in zip(captioners, ((5, 5, 5, 2, 5), (5, 5, 4)), strict=True):
            for size in sizes:
                prompts = [torch.randint(1, 40, (int(torch.randint(6, ())),)).tolist() for _ in range(size - 1)]
                inputs = decoder_inputs(captioner, torch.randn(size, 5, 16))
                prefix = pad_left(inputs, [*prompts, [5] * 6], lm)
                expected = decode_eagerly(lm, prefix, method, max_tokens=12, **options_of(method, options))
                assert decode(lm, prefix, method, max_tokens=12, **options_of(method, options)) == expected
    assert len(tapes) == 2 and all(tape.replayed > 5 for tape in tapes)


FEW = ["gpt_neox", "gemma3, mixed", "mistral, window", "phi"]


@pytest.mark.parametrize("kind", slow_after(len(FEW), [*FEW, *(kind for kind in KINDS if kind not in FEW)]))
@torch.no_grad()
def test_every_kind_of_model_attends_to_images(kind: str) -> None:
    """From its cache as without one; and without an image it reads as before."""
    lm = tiny_model(*ACCEPTED[kind], tuning="frozen")
    tokens = lm.embed(torch.randint(1, 40, (3, 6)))
    before = lm(tokens.clone(), last=6)
    captioner = captioner_of(lm)
    assert torch.equal(lm(tokens.clone(), last=6), before)
    prefix, memory = captioner.prefix_and_memory(torch.randn(3, 5, 16))
    inputs = torch.cat((prefix, tokens), dim=1)
    with attending(memory):
        expected = lm(inputs.clone(), last=3).float()
    assert not torch.allclose(expected, before[:, -3:], rtol=1e-2, atol=1e-2)
    cache = KeyValueCache(7)
    cache.memory = memory
    actual = [lm.step(inputs[:, :5].clone(), cache)]
    actual += [lm.step(inputs[:, position : position + 1].clone(), cache) for position in (5, 6)]
    scale = float(expected.std())
    torch.testing.assert_close(torch.stack(actual, dim=1), lm.mask_unknown_ids(expected), rtol=1e-3, atol=1e-3 * scale)


@pytest.mark.parametrize(
    ("gpt2", "features", "head_dim", "count"),
    [
        # What the paper publishes, of ViT-B/32's hidden states: 7M, 3.6M and 1.8M, and 47M with GPT-2 large.
        ({}, "hidden", 16, 7_094_016),
        ({}, "hidden", 8, 3_551_616),
        ({}, "hidden", 4, 1_780_416),
        ({"n_embd": 1280, "n_layer": 36, "n_head": 20}, "hidden", 16, 47_266_560),
        ({}, "patches", 16, 5_914_368),
    ],
)
def test_trained_parameters_are_the_published_ones(
    gpt2: dict[str, int], features: str, head_dim: int, count: int
) -> None:
    with torch.device("meta"):
        lm = LanguageModel(GPT2LMHeadModel(GPT2Config(**gpt2)), load_tokenizer("demo"), "gpt2")
        mapper: dict[str, Any] = {"name": "cross_attention", "head_dim": head_dim, "features": features}
        mapper |= {"input_dim": 768} if features == "hidden" else {}
        captioner = Captioner(lm, EncoderIdentity("clip:ViT-B/32", "", "", 512), mapper, start_token=True)
    trained, frozen = trainable_parameters(captioner)
    assert trained == count
    assert frozen == sum(weight.numel() for weight in lm.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_in_float32_of_a_language_model_in_16_bits(dtype: torch.dtype) -> None:
    captioner = captioner_of(small_lm())
    patches, captions = torch.randn(10, 5, 16), some_captions(40)
    batch = pack(patches, captions, OWNERS, 1, prompts=some_prompts())
    expected = captioner.loss(batch)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(captioner.loss(batch), expected, rtol=0.05, atol=0.0)
    captioner.language_model.model.to(dtype)
    loss = captioner.loss(batch)
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0.0)
    loss.backward()
    for name, weight in captioner.mapper.named_parameters():
        assert weight.dtype == torch.float32 and weight.grad is not None and weight.grad.isfinite().all(), name
    assert len(captioner.caption(patches, "beam", beams=2, max_tokens=4)) == 10


def test_sharding_is_refused_before_anything_is_sharded() -> None:
    with pytest.raises(InputError, match="FSDP does not gather them: train with ddp"):
        FSDP2Strategy().shard(captioner_of(small_lm()))


def test_what_cannot_be_is_refused_in_one_line() -> None:
    unlike = {
        "bloom": "computes its positions",
        "mamba": "computes its positions",
        "jamba": "has no layers of one self",
    }
    models = {tiny_model(*REFUSED[kind][:2], tuning="frozen"): message for kind, message in unlike.items()}
    for lm, message in (models | {tiny_model(*ACCEPTED["ctrl"], tuning="frozen"): "has no layers of one self"}).items():
        with pytest.raises(InputError, match=f"language model '{lm.name}' .*{message}.*take another") as error:
            Captioner(lm, IDENTITY, THIN, start_token=True)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"makes no prefix vectors.*set start_token=True"):
        Captioner(small_lm(), IDENTITY, THIN)
    with pytest.raises(InputError, match="has layers=3, but language model 'random' has 2: leave it out"):
        Captioner(small_lm(), IDENTITY, THIN | {"layers": 3}, start_token=True)
    with pytest.raises(InputError, match="must be patches, regions, hidden, not 'image'"):
        Captioner(small_lm(), IDENTITY, THIN | {"features": "image"}, start_token=True)
    with pytest.raises(
        InputError, match="reads hidden, and input_dim is the width of hidden states: set input_dim=768"
    ):
        Captioner(small_lm(), IDENTITY, THIN | {"features": "hidden"}, start_token=True)
    hidden = Captioner(small_lm(), IDENTITY, THIN | {"features": "hidden", "input_dim": 24}, start_token=True)
    with pytest.raises(InputError, match=r"but this captioner reads \(batch, hidden, 24\): embed .*\[image,hidden\]"):
        hidden.caption(torch.randn(2, 5, 16))
    captioner = captioner_of(small_lm())
    with pytest.raises(InputError, match="'cross_attention' puts images into no prefix"):
        captioner.prefix(torch.randn(2, 5, 16))
    with pytest.raises(InputError, match="cannot be compiled"):
        captioner.language_model.compile_training("default")
    compiled = small_lm()
    compiled.compile_training("default")
    with pytest.raises(InputError, match="cannot be compiled"):
        captioner_of(compiled)


def make_store(path: Path) -> Path:
    """Three images with patches and embeddings of captions, three times in train and once in val."""
    images = [
        ImageRecord(number, f"{number}.jpg", "val" if number > 8 else "train", CAPTIONS[number % 3])
        for number in range(12)
    ]
    numbers = np.random.default_rng(0)
    columns = {
        "images/embedding": numbers.normal(size=(12, 16)).astype(np.float16),
        "images/patches": numbers.normal(size=(12, 5, 16)).astype(np.float16),
    }
    writer = StoreWriter(path, IDENTITY, "test", path, job="test", shards=1)
    writer.write_piece(0, 0, 1, images, columns, [])
    join(path)
    return path


def fresh() -> Captioner:
    torch.manual_seed(1)
    return Captioner(load_language_model("demo"), IDENTITY, {"name": "cross_attention"}, start_token=True)


def test_a_run_that_is_resumed_learns_the_same(tmp_path: Path) -> None:
    """And its checkpoint and exported folder, of adapters alone, caption the same."""
    store = make_store(tmp_path / "store")
    whole, trainer = fit(fresh(), store, tmp_path / "whole", 4)
    untrained = fresh()
    for name, weight in whole.language_model.model.named_parameters():
        assert weight.equal(untrained.language_model.model.get_parameter(name)), name
    assert trainer.callback_metrics["train_loss"] < 3.5  # of about 5 before
    fit(fresh(), store, tmp_path / "parts", 2)
    parts, _ = fit(fresh(), store, tmp_path / "parts", 4, tmp_path / "parts" / "last.ckpt")
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other)

    file = tmp_path / "whole" / "last.ckpt"
    names = torch.load(file, weights_only=True)["state_dict"].keys()
    assert names == {f"captioner.mapper.{name}" for name, _ in whole.mapper.named_parameters()}
    loaded, patches = prefixcap.load(file), torch.randn(4, 5, 16)
    expected = whole.caption(patches, max_tokens=12)
    assert len(set(expected)) > 1
    assert loaded.caption(patches, max_tokens=12) == expected
    assert loaded.mapper_options == whole.mapper_options == {"name": "cross_attention", "layers": 4} | {
        "heads": 4, "width": 128,
    }  # fmt: skip
    loaded.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder" / "language_model").exists()
    assert prefixcap.load(tmp_path / "folder").caption(patches, max_tokens=12) == expected
    card = (tmp_path / "folder" / "README.md").read_text(encoding="utf-8")
    assert (
        "let the layers of a language model attend" in card
        and "into a prefix" not in card
        and "cross_attention" in card
    )


@pytest.mark.parametrize(
    ("options", "problem"),
    [({"layers": 9}, "weight 'mapper"), ({"width": 64}, "weight 'mapper"), ({"heads": 0}, "heads must")],
)
def test_a_checkpoint_whose_adapters_do_not_fit_is_refused(
    options: dict[str, int], problem: str, tmp_path: Path
) -> None:
    content = {"prefixcap": fresh().describe(), "state_dict": {}}
    content["state_dict"] = {f"captioner.{name}": weight for name, weight in fresh().checkpoint_state_dict().items()}
    content["prefixcap"]["mapper"] |= options
    torch.save(content, tmp_path / "best.ckpt")
    with pytest.raises(InputError, match=problem) as error:
        prefixcap.load(tmp_path / "best.ckpt")
    assert "best.ckpt" in str(error.value) and "\n" not in str(error.value)


def test_self_critical_training_draws_captions_of_the_image() -> None:
    captioner = captioner_of(small_lm())
    reward = SelfCritical(captioner, reward=lambda captions, rows, embeddings: np.zeros(len(captions)), draws=2)
    patches, prompts, drawn = torch.randn(3, 5, 16), [[5, 6], [], [7]], []
    for images in (patches, patches, patches.flip(0)):
        torch.manual_seed(0)
        drawn.append(reward.sample(images, prompts))
    assert drawn[0] == drawn[1] != drawn[2]
    batch = pack(patches, [[5, 0], [6, 0], [7, 0]], [0, 1, 2], 1, image_rows=[0, 1, 2])
    states = captioner.states(reward.prepare(batch, batch))
    assert states.isfinite().all()
