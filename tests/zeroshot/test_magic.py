"""MAGIC against its definition, on the small world's models: no cache, whole sentences, one image at a time."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from hydra import compose, initialize_config_dir
from PIL import Image
from torch import Tensor

from prefixcap.decoding import decode
from prefixcap.demo.drawing import draw
from prefixcap.demo.scenes import random_scene
from prefixcap.encoders import embed_images, load_encoder
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel, load_language_model
from prefixcap.zeroshot.magic import Magic
from tests.conftest import ROOT, slow_after
from tests.decoding import stateful_lm

ENCODER = load_encoder("demo")
DEMO = load_language_model("demo")
START = DEMO.eos_token_id


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    """The small world's, whose captions end at the end of the first sentence."""
    language_model = load_language_model("demo")
    (language_model.eos_token_id,) = language_model.tokenizer(".")["input_ids"]
    return language_model


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(7)
    return [draw(random_scene(generator), generator) for _ in range(20)]


@pytest.fixture(scope="module")
def embeddings(pictures: list[Image.Image]) -> Tensor:
    return embed_images(ENCODER, pictures).clone()


@torch.no_grad()
def by_definition(
    lm: LanguageModel, image: Tensor, k: int, alpha: float, beta: float, most: int, prompt: str
) -> tuple[list[int], float]:
    """The tokens of a caption, and by how much the closest choice was won."""

    def read(texts: list[list[int]]) -> tuple[Tensor, Tensor]:
        tokens = torch.tensor([[START, *text] for text in texts])
        output = lm.model(input_ids=tokens, use_cache=False, output_hidden_states=True)
        return output.logits[:, -1].softmax(-1), output.hidden_states[-1]

    beginning: list[int] = lm.tokenizer(prompt)["input_ids"]
    written: list[int] = []
    closest = 1.0
    while len(written) < most:
        (probabilities,), (before,) = read([beginning + written])
        candidates = probabilities.topk(k).indices.tolist()
        texts = [[*beginning, *written, word] for word in candidates]
        whole = ENCODER.encode_texts([lm.tokenizer.decode(text, skip_special_tokens=True) for text in texts])
        of_image = (100 * F.cosine_similarity(whole, image[None])).softmax(0)
        scores = []
        for word, states, f in zip(candidates, read(texts)[1], of_image, strict=True):
            repeats = max(float(F.cosine_similarity(states[-1], other, dim=0)) for other in before)
            scores.append((1 - alpha) * float(probabilities[word]) - alpha * repeats + beta * float(f))
        best, second = sorted(scores, reverse=True)[:2]
        closest = min(closest, best - second)
        written.append(candidates[scores.index(best)])
        if written[-1] == lm.eos_token_id:
            return written[:-1], closest
    return written, closest


@pytest.mark.parametrize(
    ("count", "k", "alpha", "beta", "prompt"), slow_after(1, [(8, 5, 0.6, 0.5, "There is a"), (20, 9, 0.1, 2.0, "")])
)
def test_same_captions_as_the_definition(
    lm: LanguageModel, embeddings: Tensor, count: int, k: int, alpha: float, beta: float, prompt: str
) -> None:
    embeddings = embeddings[:count]
    magic = Magic(ENCODER, lm, prompt=prompt, top_k=k, alpha=alpha, beta=beta, max_tokens=13)
    expected = [by_definition(lm, image, k, alpha, beta, 13, prompt) for image in embeddings]
    found = magic.caption(embeddings)
    for caption, (tokens, closest) in zip(found, expected, strict=True):
        assert caption == lm.detokenize(tokens)
        assert closest > 1e-6, "a choice that rounding may turn tests nothing"
    lengths = {len(tokens) for tokens, _ in expected}
    assert len(lengths) > 2 and min(lengths) < 13, "captions end at different steps"
    assert len(set(found)) > count // 2, "images decide"
    assert found == [magic.caption(image[None])[0] for image in embeddings] == magic.caption(embeddings.numpy(), 20)


def test_same_captions_with_an_encoder_that_reads_texts_whole(
    lm: LanguageModel, embeddings: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"top_k": 9, "max_tokens": 13}
    shared = Magic(ENCODER, lm, **options).caption(embeddings[:6])
    monkeypatch.setattr(type(ENCODER), "text_tower", None)
    assert Magic(ENCODER, lm, **options).caption(embeddings[:6]) == shared


def test_without_the_image_it_is_contrastive_search(lm: LanguageModel) -> None:
    prefix = lm.embed(torch.tensor([[START, *lm.tokenizer("In the")["input_ids"]]]))
    for k, alpha in ((5, 0.6), (9, 0.1), (3, 0.9)):
        ((tokens,),) = decode(lm, prefix, "contrastive", top_k=k, penalty=alpha, max_tokens=13)
        magic = Magic(ENCODER, lm, prompt="In the", top_k=k, alpha=alpha, beta=0.0, max_tokens=13)
        assert magic.caption(torch.randn(2, 128)) == [lm.detokenize(tokens)] * 2


def test_images_are_paths_pictures_or_embeddings_of_any_length(
    lm: LanguageModel, pictures: list[Image.Image], embeddings: Tensor, tmp_path: Path
) -> None:
    magic = Magic(ENCODER, lm, top_k=9)
    pictures[0].save(tmp_path / "a.png")
    expected = magic.caption(embeddings[:2])
    assert magic.caption([tmp_path / "a.png", pictures[1]]) == magic.caption(7.0 * embeddings[:2]) == expected
    assert magic.caption([]) == []
    (tmp_path / "b.png").write_text("no image")
    with pytest.raises(InputError, match=r"b\.png"):
        magic.caption([tmp_path / "b.png"])


def test_most_tokens_and_the_start_token(lm: LanguageModel, embeddings: Tensor) -> None:
    assert all(len(caption.split()) == 1 for caption in Magic(ENCODER, lm, max_tokens=1).caption(embeddings[:4]))
    stop = Magic(ENCODER, lm, top_k=9, start=".").caption(embeddings[:4])
    assert stop != Magic(ENCODER, lm, top_k=9).caption(embeddings[:4])
    assert Magic(ENCODER, lm, top_k=9, start="<|endoftext|>").caption(embeddings[:4]) == (
        Magic(ENCODER, lm, top_k=9).caption(embeddings[:4])
    )


def test_the_constants_are_the_papers() -> None:
    """Section 5.1, a language model of COCO's captions; and the configuration has the same."""
    magic = Magic(ENCODER, DEMO)
    assert (magic.top_k, magic.alpha, magic.beta, magic.temperature) == (45, 0.1, 2.0, 0.01)
    configured = yaml.safe_load((ROOT / "conf/method/magic.yaml").read_text())
    defaults = {name: of.default for name, of in inspect.signature(Magic).parameters.items()}
    del defaults["encoder"], defaults["language_model"]
    models = {"name": "magic", "lm": "???", "encoder": None, "encoder_dtype": "float32"}
    assert configured == defaults | models


def test_a_language_model_of_flickr30ks_captions_writes_as_many_tokens_as_in_the_released_code(
    lm: LanguageModel, embeddings: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`decoding_len` counts the start token, and what is written beyond the first end token is cut."""
    conf = str(ROOT / "conf")
    with initialize_config_dir(conf, version_base="1.3"):
        coco, flickr = (
            compose("eval", [f"method={name}", "method.lm=lm"]).method for name in ("magic", "magic_flickr30k")
        )
    assert dict(flickr) == dict(coco) | {"top_k": 25, "max_tokens": flickr.max_tokens}
    monkeypatch.setattr(lm, "eos_token_id", START)  # which is hardly ever written: captions have all tokens
    for decoding_len, config in ((16, coco), (20, flickr)):
        options = {name: config[name] for name in ("top_k", "alpha", "beta", "temperature", "max_tokens")}
        (found,) = Magic(ENCODER, lm, **options)._search(F.normalize(embeddings[:1], dim=-1))
        expected, closest = by_definition(
            lm, embeddings[0], config.top_k, config.alpha, config.beta, decoding_len - 1, ""
        )
        assert found == expected and closest > 1e-6
        assert len(found) + 1 == decoding_len


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k must be at least 1, not 0"),
        ({"top_k": 100_000}, "top_k must lie between 1 and"),
        ({"alpha": 1.1}, r"alpha must be between 0\.0 and 1\.0, not 1\.1"),
        ({"alpha": float("nan")}, "alpha must be a finite number between 0.0 and 1.0, not nan"),
        ({"alpha": "a lot"}, "alpha must be a finite number between 0.0 and 1.0, not 'a lot'"),
        ({"temperature": float("inf")}, "temperature must be a finite number above 0.0, not inf"),
        ({"max_tokens": True}, "max_tokens must be an integer of at least 1, not True"),
        ({"prompt": ["a", "b"]}, "prompt must be a text"),
        ({"beta": -1.0}, r"beta must be between 0\.0 and 1000000\.0, not -1\.0"),
        ({"temperature": 0.0}, r"temperature must be above 0\.0"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, not 0"),
        ({"start": "<-start_of_text->"}, "has no token '<-start_of_text->'"),
        ({"prompt": "a red star " * 50}, r"a prompt of \d+ tokens and max_tokens=15 exceed the context .*\(128\)"),
        ({"prompt": "0" * 80}, r"the prompt fills the context of demo \(77 tokens\)"),
    ],
)
def test_mistakes_in_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        Magic(ENCODER, DEMO, **options)
    assert "\n" not in str(error.value)


def test_mistakes_in_images(lm: LanguageModel) -> None:
    magic = Magic(ENCODER, lm)
    with pytest.raises(InputError, match=r"embeddings of shape \(2, 64\): give \(batch, 128\)"):
        magic.caption(torch.zeros(2, 64))
    with pytest.raises(InputError, match="row 1 NaN or infinite"):
        magic.caption(torch.tensor([[0.0] * 128, [float("nan")] * 128]))
    with pytest.raises(InputError, match="give \\[image\\]"):
        magic.caption("a.png")
    with pytest.raises(InputError, match=r"nowhere\.png"):
        magic.caption(["nowhere.png"])


def test_a_language_model_without_keys_and_values_is_refused() -> None:
    lm = stateful_lm("mamba", len(DEMO.tokenizer))
    with pytest.raises(
        InputError, match=r"'mamba' has no key/value cache in every layer, .*: take another transformer"
    ):
        Magic(ENCODER, lm).caption(torch.ones(1, 128))
