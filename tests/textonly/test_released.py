"""What the released code of MacCap does otherwise than the paper says, beside plain loops over captions and images."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import prefixcap
from prefixcap.captioner import Captioner
from prefixcap.data import CaptionData
from prefixcap.decoding import DECODERS, decode
from prefixcap.encoders.regions import unit_parts
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel, load_language_model
from prefixcap.packing import pack
from prefixcap.sampling import clean_caption as cleaned
from tests.conftest import IDENTITY, small_lm
from tests.decoding import random_lm
from tests.textonly.test_training import make_store

OWNERS = [0, 0, 1, 2, 2, 2]
CAPTIONS = [[5, 9, 0], [7, 0], [3, 3, 8, 11, 0], [0], [12, 4, 6, 0], [5, 2, 0]]


def captioner(language_model: LanguageModel, mapper: str = "mlp", start_token: bool = True) -> Captioner:
    torch.manual_seed(0)
    options = {"name": mapper, "prefix_length": 4}
    made = Captioner(language_model, IDENTITY, options, normalize_embeddings=True, start_token=start_token)
    with torch.no_grad():
        for weight in made.mapper.parameters():
            weight.mul_(4)  # so that what is read decides what is written
    return made.eval()


def loss_of_a_caption(model: Captioner, embedding: Tensor, tokens: list[int], learned_start: bool) -> Tensor:
    """The sum over the tokens, by the language model's own forward pass with labels; -100 is not learned."""
    lm = model.language_model
    start = lm.tokenizer.bos_token_id
    made = model.mapper(F.normalize(embedding, dim=0)[None])  # (1, 4, dim)
    read = torch.cat((made, lm.model.get_input_embeddings()(torch.tensor([[start, *tokens]]))), dim=1)
    labels = torch.tensor([[-100] * made.shape[1] + [start if learned_start else -100] + tokens])
    mean: Tensor = lm.model(inputs_embeds=read, labels=labels, use_cache=False).loss
    return mean * (len(tokens) + learned_start)


@pytest.mark.parametrize("learned_start", [False, True])
@pytest.mark.parametrize("kind", ["opt", "gpt2"])
def test_losses_behind_a_start_token_are_those_of_the_language_models_own_forward_pass(
    kind: str, learned_start: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefixcap.packing._ROW", 20)  # several rows
    lm = random_lm(kind, 0)
    lm.tokenizer.bos_token = lm.tokenizer.convert_ids_to_tokens(13)  # of 40 words; not the end token
    model = captioner(lm.requires_grad_(True))
    embeddings = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    batch = pack(embeddings, CAPTIONS, OWNERS, model.prefix_length, start_token=13 if learned_start else None)
    assert len(batch.images) > 1 and len(batch.targets) == sum(map(len, CAPTIONS)) + 6 * learned_start
    expected = torch.stack(
        [loss_of_a_caption(model, embeddings[i], row, learned_start) for i, row in zip(OWNERS, CAPTIONS, strict=True)]
    ).sum()
    expected.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    loss = model.loss(batch)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    assert len(gradients) > 10
    for name, weight in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-4, atol=1e-4)
    without = captioner(lm, start_token=False)
    other = without.loss(pack(embeddings, CAPTIONS, OWNERS, without.prefix_length))
    assert abs((other - loss).item()) > 0.1, "the start token changes nothing"


@pytest.mark.parametrize(("most", "padding"), [(5, 7), (9, 7), (9, None)])
def test_released_tokens_are_padded_or_cut_and_all_are_learned(most: int, padding: int | None, tmp_path: Path) -> None:
    """Captions have six tokens with the start and the end token; where there is no padding token, that is the end."""
    lm = small_lm()
    if padding is not None:
        lm.tokenizer.pad_token = lm.tokenizer.convert_ids_to_tokens(padding)
    model = captioner(lm)
    store = make_store(tmp_path / "store")
    data = CaptionData(store, model, 9, max_caption_tokens=most - 1, from_text=True, released_tokens=True)
    start, end = lm.start_token, lm.eos_token_id
    for batch in data.train_dataloader():
        expected = torch.zeros(())
        for embedding, row in zip(batch.embeddings, batch.caption_rows, strict=True):
            words = lm.tokenizer(data.train_split.captions[row])["input_ids"]
            tokens = [start, *words, end][:most]
            tokens += [end if padding is None else padding] * (most - len(tokens))
            assert len(words) == 4
            expected += loss_of_a_caption(model, embedding, tokens[1:], learned_start=True)
        torch.testing.assert_close(model.loss(batch), expected, rtol=1e-5, atol=1e-4)
        assert len(batch.targets) == most * len(batch.caption_rows)
    plain = CaptionData(store, model, 9, max_caption_tokens=most - 1, from_text=True)
    for released, usual in zip(data.val_dataloader(), plain.val_dataloader(), strict=True):
        assert torch.equal(released.targets, usual.targets)
    with pytest.raises(InputError, match="pads captions to max_caption_tokens"):
        CaptionData(store, model, from_text=True, released_tokens=True)


@pytest.mark.parametrize("prompt", ["", "A red"])
@pytest.mark.parametrize("method", DECODERS)
def test_every_decoder_reads_prefix_start_token_and_prompt(method: str, prompt: str) -> None:
    lm = load_language_model("demo")
    lm.tokenizer.bos_token = "."
    model, embeddings = captioner(lm), torch.randn(3, 16, generator=torch.Generator().manual_seed(2))
    words = [lm.tokenizer.bos_token_id, *lm.tokenizer(prompt)["input_ids"]]
    read = torch.cat((model.mapper(F.normalize(embeddings, dim=-1)), lm.embed(torch.tensor([words] * 3))), dim=1)
    options: dict[str, Any] = {"max_tokens": 8} | ({"seed": 3} if method == "nucleus" else {})
    drawn: dict[str, Any] = {"generator": torch.Generator().manual_seed(3)} if method == "nucleus" else {}
    expected = decode(lm, read.detach(), method, **drawn, max_tokens=8)
    found = model.caption(embeddings, method, prompt=prompt, **options)
    assert found == [lm.detokenize(words[1:] + row) for (row,) in expected]
    if method == "greedy":
        given = {
            "max_new_tokens": 8,
            "do_sample": False,
            "eos_token_id": lm.eos_token_id,
            "pad_token_id": lm.eos_token_id,
        }
        generated = lm.model.generate(inputs_embeds=read, attention_mask=torch.ones(read.shape[:2]), **given)
        assert found == [lm.detokenize(words[1:] + row) for row in generated.tolist()]
        assert found != captioner(lm, start_token=False).caption(embeddings, method, prompt=prompt, max_tokens=8)


@pytest.mark.parametrize("form", ["checkpoint", "folder"])
def test_a_start_token_is_saved_and_older_captioners_have_none(form: str, tmp_path: Path) -> None:
    embeddings = torch.randn(4, 16, generator=torch.Generator().manual_seed(2))
    for start_token in (True, False):
        model, path = captioner(load_language_model("demo"), start_token=start_token), tmp_path / f"{start_token}.ckpt"
        if form == "folder":
            model.save_pretrained(path)
        else:
            described = model.describe()
            if not start_token:
                del described["start_token"]  # as an older one
            state = {f"captioner.{name}": weight for name, weight in model.checkpoint_state_dict().items()}
            torch.save({"prefixcap": described, "state_dict": state}, path)
        loaded = prefixcap.load(path)
        assert (loaded.start_token, loaded.prefix_length) == (start_token, 4 + start_token)
        assert loaded.caption(embeddings, "greedy", max_tokens=9) == model.caption(embeddings, "greedy", max_tokens=9)


def test_a_start_token_without_an_embedding_is_told() -> None:
    lm = random_lm("opt", 0)  # of 40 words, with a tokenizer of more
    assert lm.start_token > 40
    with pytest.raises(InputError, match="start_token must be true or false, not 'learn'"):
        Captioner(lm, IDENTITY, {"name": "mlp", "prefix_length": 4}, start_token="learn")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'random' has 40 word embeddings, and none for its start token"):
        Captioner(lm, IDENTITY, {"name": "mlp", "prefix_length": 4}, start_token=True)


def noisy_regions(regions: Tensor, embeddings: Tensor, count: int, variance: float) -> Tensor:
    """What the released code reads for each of `count` candidates, one region at a time: (images * count, …, dim)."""
    noise = torch.randn((len(regions) * count, *regions.shape[1:]), generator=torch.Generator().manual_seed(5))
    found = torch.empty_like(noise)
    for image in range(len(regions)):
        whole = embeddings[image] / embeddings[image].norm()
        for place in range(regions.shape[1]):
            mixed = regions[image, place] - embeddings[image]
            added = whole + mixed / mixed.norm()
            for candidate in range(count):
                row = image * count + candidate
                moved = added + math.sqrt(variance) * noise[row, place]
                found[row, place] = moved / moved.norm()
    return found


@pytest.mark.parametrize("given", ["embeddings", "images"])
def test_noise_on_parts_of_length_one(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = captioner(load_language_model("demo"), "adaptor")
    generator = torch.Generator().manual_seed(4)
    embeddings, added = 9 * torch.randn(3, 16, generator=generator), 5 * torch.randn(3, 6, 16, generator=generator)
    regions = embeddings[:, None] + added
    options: dict[str, Any] = {"decode": "greedy", "max_tokens": 9}
    alone = [model.caption(row[None], **options)[0] for row in noisy_regions(regions, embeddings, 4, 0.3)]
    noisy = options | {"noise": 0.3, "unit_parts": True, "seed": 5}
    images: Any = regions
    if given == "images":
        features = {"images/regions": regions, "images/embedding": embeddings}
        images = ["0.png", "1.png", "2.png"]
        monkeypatch.setattr(
            "prefixcap.captioner.captioner.embed_images",
            lambda encoder, files, name: features[name][[int(file[0]) for file in files]],
        )
        monkeypatch.setattr(
            "prefixcap.captioner.captioner.preprocess_images",
            lambda encoder, files: torch.tensor([int(file[0]) for file in files]),
        )
        monkeypatch.setattr("prefixcap.reranking.encode_feature", lambda encoder, rows, name: features[name][rows])
        monkeypatch.setattr(Captioner, "encoder", lambda self: None)
    else:
        noisy["embeddings"] = embeddings.numpy()
    found = model.candidates(images, 4, batch_size=8, **noisy)
    assert found == [alone[first : first + 4] for first in (0, 4, 8)] and len(set(alone)) > 4
    assert model.candidates(images, 4, batch_size=8, **noisy | {"unit_parts": False}) != found
    clean = unit_parts(regions, embeddings)
    expected = model.caption(clean / clean.norm(dim=-1, keepdim=True), **options)
    assert model.caption(images, **options, unit_parts=True, embeddings=noisy.get("embeddings")) == expected


@pytest.mark.parametrize(
    ("dim", "cosine", "of_sum", "of_parts"),
    [(128, 0.86, 0.57, 0.80), (512, 0.45, 0.33, 0.51), (512, 0.95, 0.33, 0.57)],
)
def test_how_much_is_left_of_a_region_under_noise(dim: int, cosine: float, of_sum: float, of_parts: float) -> None:
    """Cosines of a region with noise of the published variance to one without; by the cosine of its parts."""
    generator = torch.Generator().manual_seed(0)
    first, other = F.normalize(torch.randn(2, 400, dim, generator=generator), dim=-1)
    other = F.normalize(other - (other * first).sum(-1, keepdim=True) * first, dim=-1)
    second = cosine * first + math.sqrt(1 - cosine**2) * other
    added = unit_parts((3 * first + 2 * second)[:, None], 3 * first)[:, 0]
    noise = math.sqrt(0.016) * torch.randn(added.shape, generator=generator)
    left = [F.cosine_similarity(clean + noise, clean, dim=-1).mean() for clean in (F.normalize(added, dim=-1), added)]
    assert left == pytest.approx([of_sum, of_parts], abs=0.01)


def test_a_region_that_is_no_more_than_the_image_has_length_one() -> None:
    embeddings = 7 * torch.randn(2, 16)
    torch.testing.assert_close(
        unit_parts(embeddings[:, None].half(), embeddings.half()),
        F.normalize(embeddings.half().float(), dim=-1)[:, None],
    )


def test_parts_need_regions_and_the_image() -> None:
    model = captioner(load_language_model("demo"), "adaptor")
    with pytest.raises(InputError, match="reads images/regions: give embeddings, too"):
        model.caption(torch.randn(1, 3, 16), "greedy", unit_parts=True)
    options = {"name": "query", "prefix_length": 2, "width": 16, "layers": 1, "heads": 2, "features": "patches"}
    patches = Captioner(load_language_model("demo"), IDENTITY, options)
    with pytest.raises(InputError, match="reads images/patches: leave it out"):
        patches.caption(torch.randn(1, 3, 16), "greedy", unit_parts=True, embeddings=torch.randn(1, 16))
    whole = captioner(load_language_model("demo"))
    noisy: dict[str, Any] = {"decode": "greedy", "noise": 0.1, "seed": 0, "max_tokens": 6}
    embeddings = torch.randn(2, 16)
    assert whole.candidates(embeddings, 2, unit_parts=True, **noisy) == whole.candidates(embeddings, 2, **noisy)


def cleaned_sign_by_sign(caption: str) -> str:
    kept = ""
    for sign in caption:
        if not ("a" <= sign <= "z" or "A" <= sign <= "Z" or "0" <= sign <= "9" or sign in " ,."):
            continue
        if sign in " ." and kept.endswith(sign):
            continue
        kept += sign
    without, place = "", 0
    while place < len(kept):
        if len(kept) - place >= 4 and all("0" <= sign <= "9" for sign in kept[place : place + 4]):
            place += 4
        else:
            without += kept[place]
            place += 1
    return without.strip()


def test_captions_are_cleaned_as_in_the_released_code() -> None:
    assert cleaned("  A café's\n sign, 1999: two  dogs...") == "A cafs sign,  two dogs."
    generator = np.random.default_rng(0)
    signs = list("aZ09  .., é\n-'½日123")
    for length in generator.integers(0, 30, 500):
        caption = "".join(generator.choice(signs, length))
        assert cleaned(caption) == cleaned_sign_by_sign(caption), caption


class Letters:
    """An encoder by which texts point along the axis of their last letter, and keeps what it read."""

    def encode_texts(self, texts: list[str]) -> Tensor:
        self.read = texts
        return torch.stack([torch.eye(16)[ord(text[-1]) % 16] for text in texts])


def test_candidates_are_cleaned_and_compared_by_their_first_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    model, embeddings, encoder = captioner(load_language_model("demo")), torch.randn(2, 16), Letters()
    monkeypatch.setattr(Captioner, "encoder", lambda self: encoder)
    monkeypatch.setattr(LanguageModel, "detokenize", lambda self, tokens: f"it's-a {tokens[0]}{tokens[1]} long one")
    drawn: dict[str, Any] = {"decode": "nucleus", "seed": 1, "max_tokens": 3, "min_tokens": 3}
    plain = model.candidates(embeddings, 5, **drawn)
    clean = [[cleaned(caption) for caption in row] for row in plain]
    assert clean != plain and model.candidates(embeddings, 5, clean=True, **drawn) == clean
    ranked = model.candidates(embeddings, 5, clean=True, by_similarity=True, rerank_characters=7, **drawn)
    assert set(encoder.read) == {caption[:7] for row in clean for caption in row}
    for row, embedding, after in zip(clean, embeddings, ranked, strict=True):
        assert after == sorted(row, key=lambda caption: -float(embedding[ord(caption[:7][-1]) % 16]))
    for wrong in (0, "80", 1.5):
        with pytest.raises(InputError, match=r"rerank_characters must be (an integer of )?at least 1"):
            model.caption(embeddings, "greedy", rerank_characters=wrong)
