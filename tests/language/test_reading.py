"""Language models in training and in decoding beside the same models that read one caption after one prefix."""

import functools
import random
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.masking_utils import create_sliding_window_causal_mask

from prefixcap.captioner import Captioner
from prefixcap.data import CaptionData
from prefixcap.decoding import decode
from prefixcap.decoding.cache import KeyValueCache
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel, load_language_model
from prefixcap.language.masks import attention_masks
from prefixcap.packing import pack
from prefixcap.training import CaptionTraining, reading_check
from prefixcap.training.reading_check import require_same_reading, undisturbed
from prefixcap.zeroshot.caption_lm import CaptionLMTraining, CaptionTexts
from tests.conftest import plain_loss
from tests.language.kinds import ACCEPTED, LOCAL, REFUSED, tiny_model
from tests.language_models import KINDS, captioner_of, save_language_model
from tests.training.test_training import make_store

LENGTHS = (21, 9, 14, 18, 7)  # of captions; a window has seven positions, a prefix four
OWNERS = [0, 0, 0, 1, 1]
POSITIONS = 60  # of the first image and some more


def captions() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, 400, (length,), generator=generator).tolist() for length in LENGTHS]


def check(captioner: Captioner, positions: int = POSITIONS) -> None:
    """As training does."""
    captioner.language_model.check_trainable()
    embeddings = torch.randn(2, 16, generator=torch.Generator().manual_seed(3))
    with undisturbed(captioner):
        prefix = captioner.prefix(embeddings)
        require_same_reading(captioner.language_model, prefix, captions()[:2], positions)


def gradients(captioner: Captioner, loss: Tensor) -> list[Tensor]:
    """Of the mapper's weights and the language model's first."""
    weights = [*captioner.mapper.parameters(), next(captioner.language_model.parameters())]
    return list(torch.autograd.grad(loss, weights))


@pytest.mark.parametrize(("name", "first"), [("gpt2", False), ("gpt2", True), ("llama", False)])
def test_prompts_are_read_in_rows_as_by_themselves(name: str, first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = captioner_of(tiny_model(name, {}))
    prefix = captioner.prefix(torch.randn(2, 16)).detach()

    def check_prompts(*prompts: list[int]) -> None:
        with undisturbed(captioner):
            require_same_reading(captioner.language_model, prefix, captions()[:2], POSITIONS, prompts, first)

    check_prompts([7, 8, 9], [])
    check_prompts([], [5])
    monkeypatch.setattr(reading_check, "pack", lambda *given, **_: pack(*given))  # as if they were not read
    check_prompts([], [])
    with pytest.raises(InputError, match="reads captions in one row, up to 60 positions of an image, differently"):
        check_prompts([7, 8, 9], [])


@pytest.mark.parametrize("name", ACCEPTED)
def test_rows_of_captions_are_read_as_each_alone(name: str) -> None:
    captioner = captioner_of(tiny_model(*ACCEPTED[name]))
    embeddings = torch.randn(2, 16)
    expected = torch.stack(
        [plain_loss(captioner, embeddings[o], c) for o, c in zip(OWNERS, captions(), strict=True)]
    ).sum()
    loss = captioner.loss(pack(embeddings, captions(), OWNERS, 4))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for found, own in zip(gradients(captioner, loss), gradients(captioner, expected), strict=True):
        assert (found - own).norm() <= 1e-4 * own.norm()
    check(captioner)


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_likeliest_words_from_the_cache_are_those_of_reading_all_again(name: str) -> None:
    lm = tiny_model(*ACCEPTED[name])
    prefix = torch.randn(2, 4, lm.dim) * lm.embed(torch.arange(9)).std().detach()
    embeddings, expected = prefix, torch.empty(2, 0, dtype=torch.long)
    with torch.no_grad():
        for _ in range(12):
            words = lm.model(inputs_embeds=embeddings.clone(), use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            expected = torch.cat((expected, words), dim=1)
            embeddings = torch.cat((embeddings, lm.embed(words)), dim=1)
    lm.eos_token_id = -1
    assert [row for [row] in decode(lm, prefix.clone(), "greedy", max_tokens=12)] == expected.tolist()


@pytest.mark.parametrize("name", ["mistral, window", "gemma3, mixed", "qwen2, mixed"])
def test_beams_reach_as_far_back_as_those_of_generate(name: str) -> None:
    lm = tiny_model(*ACCEPTED[name])
    prefix = torch.randn(3, 4, lm.dim) * lm.embed(torch.arange(9)).std().detach()
    options = {"max_new_tokens": 14, "num_beams": 3, "do_sample": False, "pad_token_id": lm.eos_token_id}
    generated = lm.model.generate(inputs_embeds=prefix, attention_mask=torch.ones(3, 4), **options).tolist()
    end = lm.eos_token_id
    expected = [row[: row.index(end)] if end in row else row for row in generated]
    assert [row for [row] in decode(lm, prefix, "beam", beams=3, max_tokens=14)] == expected


@pytest.mark.parametrize("name", REFUSED)
def test_what_reads_otherwise_is_told_in_one_line(name: str) -> None:
    kind, options, problem = REFUSED[name]
    with pytest.raises(InputError, match=f"^language model '{kind}' .*{problem}") as told:
        check(captioner_of(tiny_model(kind, options)))
    message = str(told.value)
    assert "\n" not in message and len(message) < 500 and ("such as GPT-2" in message or "take another" in message)


def broken(monkeypatch: pytest.MonkeyPatch, name: str, change: Any) -> Captioner:
    """A GPT-2 whose body reads options that were changed."""
    captioner = captioner_of(tiny_model("gpt2", {}))
    body = captioner.language_model.model.transformer
    forward = body.forward

    @functools.wraps(forward)
    def changed(*args: Any, **options: Any) -> Any:
        if options.get(name) is not None:
            options[name] = change(options[name])
        return forward(*args, **options)

    monkeypatch.setattr(body, "forward", changed)
    return captioner


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("position_ids", lambda positions: None),
        ("position_ids", lambda positions: positions.clamp(max=12)),
        ("attention_mask", lambda mask: None),
        ("attention_mask", lambda mask: mask | mask.roll(1, -1).tril()),  # the words next to one's own
    ],
)
def test_a_model_that_heeds_no_positions_or_no_mask_is_found_out(
    name: str, change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(captioner_of(tiny_model("gpt2", {})))
    with pytest.raises(InputError, match=r"'gpt2' reads captions in one row, up to 60 positions of .*, differently"):
        check(broken(monkeypatch, name, change))


def test_a_model_that_forgets_its_cache_or_changes_embeddings_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = captioner_of(tiny_model("llama", {}))
    rotary = captioner.language_model.model.model.rotary_emb
    forward = rotary.forward
    with monkeypatch.context() as patch:  # each word from the cache would be the first
        patch.setattr(rotary, "forward", lambda x, position_ids: forward(x, position_ids % max(2, x.shape[1])))
        with pytest.raises(InputError, match="continues differently from its keys and values"):
            check(captioner)
    words = captioner.language_model.model.get_input_embeddings()
    hook = captioner.language_model.model.model.register_forward_pre_hook(
        lambda module, args, options: (args, options | _scaled(words, options)), with_kwargs=True
    )
    with pytest.raises(InputError, match="reads tokens differently by their embeddings than by their ids"):
        check(captioner)
    hook.remove()
    check(captioner)


def _scaled(words: torch.nn.Embedding, options: dict[str, Any]) -> dict[str, Any]:
    """As models that scale the embeddings of ids alone."""
    if options.get("input_ids") is None:
        return {}
    return {"input_ids": None, "inputs_embeds": 5 * words(options["input_ids"])}


@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
def test_the_check_leaves_no_trace(tuning: Any, tmp_path: Path) -> None:
    lm = load_language_model(save_language_model("gpt2", tmp_path), tuning)
    captioner = captioner_of(lm).train()
    captioner.loss(pack(torch.randn(2, 16), captions(), OWNERS, 4)).backward()
    before = {name: weight.clone() for name, weight in captioner.state_dict().items()}
    grads = {name: weight.grad.clone() for name, weight in captioner.named_parameters() if weight.grad is not None}
    modes = [module.training for module in captioner.modules()]
    states = torch.get_rng_state(), random.getstate()
    check(captioner)
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
    assert modes == [module.training for module in captioner.modules()] and any(modes)
    assert all(torch.equal(weight, before[name]) for name, weight in captioner.state_dict().items())
    after = {name: weight.grad for name, weight in captioner.named_parameters() if weight.grad is not None}
    assert after.keys() == grads.keys() and all(torch.equal(after[name], grads[name]) for name in grads)


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"dtype": "float16"}, {"quantization": "8bit"},
                                     {"quantization": "4bit", "dtype": "bfloat16"}])  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_coarse_weights_are_no_difference(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    lm = load_language_model(save_language_model(kind, tmp_path), **options)
    lm.context = None
    captioner = captioner_of(lm)
    embeddings = torch.randn(2, 16)
    with undisturbed(captioner):
        short = [caption[:9] for caption in captions()[:2]]
        require_same_reading(lm, captioner.prefix(embeddings), short, 40)


def fit(captioner: Captioner, store: Path, folder: Path, **options: Any) -> L.Trainer:
    data = CaptionData(store, captioner, batch_size=4, keep_tokens=False, **options)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(CaptionTraining(captioner, data.val_split, max_tokens=3), data)
    return trainer


def test_training_does_not_start_with_a_window_that_counts_along_the_row(tmp_path: Path) -> None:
    """An image with five captions takes 4 + 5 * 10 positions of a row in validation, and one caption 14."""
    store = make_store(tmp_path / "store", captions=(("A red star and a blue ring.",) * 5, ("A star.",)))
    data = CaptionData(store, captioner_of(tiny_model("gpt2", {})), keep_tokens=False)
    positions = data.longest()[2]
    narrow = captioner_of(tiny_model("gpt_neo", LOCAL | {"window_size": positions - 1}, "frozen"))
    before = [weight.clone() for weight in narrow.parameters()]
    with pytest.raises(InputError, match=f"'gpt_neo' .*window of {positions - 1} counts along the row: max_caption_t"):
        fit(narrow, store, tmp_path)
    assert all(map(torch.equal, before, narrow.parameters()))
    wide = captioner_of(tiny_model("gpt_neo", LOCAL | {"window_size": positions}, "frozen"))
    assert fit(wide, store, tmp_path).global_step > 0
    assert fit(narrow, store, tmp_path, max_caption_tokens=4).global_step > 0


def test_a_language_model_that_is_tuned_on_captions_is_tried_first(tmp_path: Path) -> None:
    texts = ["A red star and a blue ring.", "A star.", "A blue ring in the snow."]
    for kind, options in (("llama", {}), ("bert", {"is_decoder": True})):
        lm = tiny_model(kind, options)
        trainer = L.Trainer(accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False)
        if kind == "llama":
            trainer.fit(CaptionLMTraining(lm, None), CaptionTexts(lm, texts, texts, 2))
            assert trainer.global_step == 1
        else:
            with pytest.raises(InputError, match="'bert' reads captions in one row"):
                trainer.fit(CaptionLMTraining(lm, None), CaptionTexts(lm, texts, texts, 2))


@pytest.mark.parametrize("grouped", [False, True])
def test_the_longest_image_of_the_data_is_known(grouped: bool, tmp_path: Path) -> None:
    texts = (("A star.",) * 7, ("A blue ring in the snow with many stars.",), ("A red star.", "A star at night."))
    data = CaptionData(
        make_store(tmp_path / "store", captions=texts), captioner_of(tiny_model("gpt2", {})), group_captions=grouped
    )
    embeddings, tokens, positions, _ = data.longest()
    lm = tiny_model("gpt2", {})
    sizes = [[len(row) - 1 for row in lm.tokenize(list(own))] for own in texts]
    assert positions == 4 + max(map(sum, sizes)) and len(tokens[0]) - 1 == max(map(max, sizes))
    batch = next(iter(data.val_dataloader()))
    assert embeddings.shape == (2, 16) and max(batch.position_ids.flatten()) < positions
    assert max(np.bincount(batch.images[batch.images >= 0])) == positions


def test_masks_are_those_of_transformers_for_a_text_alone() -> None:
    config = tiny_model(*ACCEPTED["mistral, window"]).model.config
    batch = pack(torch.zeros(1, 2), [list(range(1, 28))], [0], 6)
    mask = attention_masks(config, batch.attention_mask(), batch.position_ids)
    embeddings = torch.zeros(1, batch.images.shape[1], 32)
    expected = create_sliding_window_causal_mask(config, embeddings, None, None, allow_is_causal_skip=False)
    assert isinstance(mask, Tensor) and torch.equal(mask, expected)
    config.sliding_window = 1000
    assert torch.equal(attention_masks(config, batch.attention_mask(), batch.position_ids), batch.attention_mask())  # type: ignore[arg-type]


@pytest.mark.parametrize("added", [{"eos_token": "<end>"}, {"additional": "<image>"}])
def test_a_token_without_an_embedding_is_told(added: dict[str, str], tmp_path: Path) -> None:
    lm = load_language_model("demo")
    tokenizer, count = lm.tokenizer, len(lm.tokenizer)
    if "eos_token" in added:
        tokenizer.add_special_tokens(added)
    else:
        tokenizer.add_tokens(list(added.values()))
    lm.model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    [token] = added.values()
    with pytest.raises(
        InputError, match=rf"has token '{token}' \({count}\), but the model embeds only {count}.*resize"
    ):
        load_language_model(str(tmp_path))
    by_hand = LanguageModel(load_language_model("demo").model, tokenizer, "by hand")
    with pytest.raises(InputError, match="language model 'by hand' has token"):
        by_hand.check_trainable()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})  # in no caption
    lm.model.resize_token_embeddings(count + 1)
    lm.model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_language_model(str(tmp_path)).tokenize(["A star."])[0][-1] < count + 1


def test_a_model_without_word_embeddings_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = load_language_model("demo")

    def none() -> None:
        raise NotImplementedError

    monkeypatch.setattr(lm.model, "get_input_embeddings", none)
    with pytest.raises(InputError, match=r"'x' \(GPT2LMHeadModel\) has no word embeddings .*: take another, a decoder"):
        LanguageModel(lm.model, lm.tokenizer, "x")
    monkeypatch.setattr(lm.model, "get_output_embeddings", lambda: None)
    with pytest.raises(InputError, match="'demo' has no output embeddings that training can read: take another"):
        lm.check_trainable()


def test_the_context_of_a_nested_configuration_is_known() -> None:
    assert tiny_model("gemma3", {}).context == 256


def test_a_padded_vocabulary_writes_no_id_without_a_token() -> None:
    lm = tiny_model("llama", {"vocab_size": 512})
    count = len(lm.tokenizer)
    with torch.no_grad():
        lm.head.weight[count:] *= 20  # they would be the likeliest
    prefix = torch.randn(3, 4, lm.dim)
    with torch.no_grad():
        plain = lm.model(inputs_embeds=prefix).logits[:, -1]
        step = lm.step(prefix, KeyValueCache(4))
    assert (plain.argmax(-1) >= count).any()
    torch.testing.assert_close(step[:, :count], plain[:, :count])
    assert (step.softmax(-1)[:, count:] == 0).all() and step.log_softmax(-1).isfinite().all()
    for method, options in (("greedy", {}), ("beam", {"beams": 4}), ("nucleus", {}), ("contrastive", {})):
        written = decode(lm, prefix, method, max_tokens=8, **options)
        assert all(token < count for own in written for caption in own for token in caption)
    check(captioner_of(lm))
