"""Prompts of images in a captioner: given to it, made by itself, kept in checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch

from prefixcap.captioner import Captioner, load
from prefixcap.decoding import decode as decode_tokens
from prefixcap.encoders import Encoder
from prefixcap.errors import InputError
from prefixcap.language import load_language_model
from prefixcap.prompts import Datastore, build_provider
from prefixcap.store import FeatureStore
from tests.conftest import small_captioner
from tests.prompts.conftest import datastore_of
from tests.test_captioner import checkpoint

ENTITIES = {"name": "clip_entities", "vocabulary": ["red star", "purple crescent", "blue ring"], "top_k": 1}
RETRIEVED = {"name": "retrieved_captions", "k": 1, "template": "Like {}"}
PROMPTS = ["A red star in the snow", "", "what is known of this image is long, and longer than of others"]
DECODERS: dict[str, dict[str, Any]] = {
    "greedy": {}, "beam": {"beams": 3}, "contrastive": {"top_k": 3}, "clipcap": {"beams": 3}, "clipcap_greedy": {},
}  # fmt: skip


def demo_captioner(encoder: Encoder) -> Captioner:
    """A captioner of the small world with a random mapper."""
    torch.manual_seed(0)
    return Captioner(load_language_model("demo"), encoder.identity, {"name": "mlp", "prefix_length": 4}).eval()


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("decode", DECODERS)
def test_the_prompt_is_read_beside_the_prefix(decode: str, first: bool, encoder: Encoder) -> None:
    """Against the decoder of each image by itself, which continues the prefix and the tokens of its prompt."""
    captioner = demo_captioner(encoder).double()
    captioner.use_prompts(ENTITIES, first=first)
    embeddings = torch.randn(3, encoder.identity.dim, generator=torch.Generator().manual_seed(0))
    captions = captioner.caption(embeddings, decode, prompts=PROMPTS, prompt="so", max_tokens=6, **DECODERS[decode])
    lm = captioner.language_model
    for embedding, prompt, caption in zip(embeddings, PROMPTS, captions, strict=True):
        with torch.inference_mode():
            own = lm.embed(torch.tensor([lm.tokenize_prompt(prompt)], dtype=torch.long))
            prefix = captioner.prefix(embedding.unsqueeze(0))
            begin = lm.embed(torch.tensor([lm.tokenize_prompt("so")], dtype=torch.long))
            prefix = torch.cat((own, prefix, begin) if first else (prefix, own, begin), dim=1)
            (((tokens),),) = decode_tokens(lm, prefix, decode, max_tokens=6, **DECODERS[decode])
        assert caption == lm.detokenize(lm.tokenize_prompt("so") + tokens)
    assert len(set(captions)) > 1


def test_noisy_candidates_share_the_prompt_of_their_image() -> None:
    captioner = small_captioner()
    embeddings = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    together = captioner.candidates(embeddings, 2, "greedy", prompts=PROMPTS, noise=0.1, seed=0, max_tokens=5)
    generator = torch.Generator().manual_seed(0)
    apart = [
        captioner.candidates(row[None], 2, "greedy", prompts=[text], noise=0.1, seed=generator, max_tokens=5)[0]
        for row, text in zip(embeddings, PROMPTS, strict=True)
    ]
    assert together == apart
    assert together != captioner.candidates(embeddings, 2, "greedy", noise=0.1, seed=0, max_tokens=5)


@pytest.mark.parametrize("decode", DECODERS)
def test_a_long_prompt_leaves_room_for_shorter_captions_of_its_image_alone(decode: str, encoder: Encoder) -> None:
    captioner = demo_captioner(encoder)
    context = captioner.language_model.context
    assert context is not None
    long = "a red star " * 38
    room = context - 4 - sum(len(captioner.language_model.tokenize_prompt(text)) for text in (long, "so"))
    assert 0 < room < 20
    embeddings = torch.randn(3, encoder.identity.dim, generator=torch.Generator().manual_seed(0))
    options = DECODERS[decode] | {"prompt": "so", "min_tokens": room, "repetition_penalty": 1.5}
    captions = captioner.caption(embeddings, decode, prompts=[PROMPTS[0], long, ""], max_tokens=20, **options)
    shorter = captioner.caption(embeddings[1:2], decode, prompts=[long], max_tokens=room, **options)
    assert captions[1:2] == shorter
    assert captions[::2] == captioner.caption(
        embeddings[::2], decode, prompts=[PROMPTS[0], ""], max_tokens=20, **options
    )
    with pytest.raises(InputError, match="exceed the context"):
        captioner.caption(embeddings[1:2], decode, prompts=[long], prompt="so " * room, max_tokens=20)
    with pytest.raises(InputError, match="exceed the context"):
        captioner.caption(embeddings, decode, prompts=["", "", ""], max_tokens=context)


def test_noisy_candidates_beside_a_long_prompt() -> None:
    captioner = small_captioner()
    context = captioner.language_model.context
    assert context is not None
    prompts = ["a", "a " * (context - 10), "so"]
    embeddings = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    given: dict[str, Any] = {"noise": 0.1, "prompts": prompts}
    together = captioner.candidates(embeddings, 2, "greedy", seed=0, max_tokens=12, **given)
    short = captioner.candidates(embeddings, 2, "greedy", seed=0, max_tokens=3, **given)
    assert [len(one) for one in together] == [2, 2, 2]
    assert all(
        caption.startswith(part)
        for both in zip(together, short, strict=True)
        for caption, part in zip(*both, strict=True)
    )


def test_wrong_prompts_are_refused() -> None:
    captioner, embeddings = small_captioner(), torch.randn(2, 16)
    with pytest.raises(InputError, match=r"^1 prompts for 2 images: give one for each$"):
        captioner.caption(embeddings, prompts=["a"])
    with pytest.raises(InputError, match="prompt must be one text, not 7"):
        captioner.caption(embeddings, prompts=["a", 7])  # type: ignore[list-item]
    with pytest.raises(InputError, match="context"):
        captioner.caption(embeddings, prompts=["a", "word " * 2000])
    with pytest.raises(InputError, match="trained without prompts of images"):
        captioner.image_prompts(embeddings)
    with pytest.raises(InputError, match="takes no datastore"):
        captioner.use_datastore("nowhere")


def test_a_captioner_makes_its_prompts_and_keeps_them_in_checkpoints(encoder: Encoder, tmp_path: Path) -> None:
    captioner = demo_captioner(encoder)
    embeddings = encoder.encode_texts(["a purple crescent in the snow", "a red star"])  # in place of pictures
    plain = captioner.caption(embeddings, "greedy")
    captioner.use_prompts(build_provider(ENTITIES, encoder))
    texts = ["There are purple crescent in image.", "There are red star in image."]
    assert [prompt.text for prompt in captioner.image_prompts(embeddings)] == texts
    captions = captioner.caption(embeddings, "greedy")
    assert captions == captioner.caption(embeddings, "greedy", prompts=texts) != plain
    assert captioner.caption(embeddings, "greedy", prompts=["", ""]) == plain
    captioner.save_pretrained(tmp_path / "folder")
    for path in (checkpoint(captioner, tmp_path / "a.ckpt"), tmp_path / "folder"):
        loaded = load(path)
        assert loaded.describe()["prompts"] == captioner.prompts
        assert loaded.caption(embeddings, "greedy") == captions


def test_another_datastore_makes_other_prompts(encoder: Encoder, store: FeatureStore, tmp_path: Path) -> None:
    captioner = demo_captioner(encoder)
    embeddings = encoder.encode_texts(["a purple crescent"])
    captioner.use_prompts(build_provider(RETRIEVED, encoder, datastore_of(["a red star"], encoder)))
    assert captioner.image_prompts(embeddings)[0].text == "Like a red star."
    captioner.use_datastore(datastore_of(["a purple crescent!", "a red star"], encoder))
    assert captioner.image_prompts(embeddings)[0].text == "Like a purple crescent!"
    captioner.use_datastore(store.path)
    assert captioner.image_prompts(embeddings)[0].items[0].text in store.split("train").captions[:]
    loaded = load(checkpoint(captioner, tmp_path / "a.ckpt"))
    with pytest.raises(InputError, match=r"need a datastore: give a feature store with embeddings of captions, e\.g\."):
        loaded.caption(embeddings)
    loaded.use_datastore(Datastore.open(store))
    assert loaded.caption(embeddings, "greedy") == captioner.caption(embeddings, "greedy")


@pytest.mark.parametrize(
    ("prompts", "problem"),
    [
        ({"name": "clip_entities", "vocabulary": "/etc/passwd"}, "vocabulary"),
        ({"name": "nothing"}, "unknown prompts 'nothing'"),
        ({"name": "retrieved_captions", "beams": 3}, "beams"),
        ({"name": "retrieved_captions", "k": 0}, "k must be"),
        ("clip_entities", "prompts"),
    ],
)
def test_a_checkpoint_with_wrong_prompts_is_refused(
    prompts: Any, problem: str, encoder: Encoder, tmp_path: Path
) -> None:
    captioner = demo_captioner(encoder)
    captioner.prompts = prompts
    with pytest.raises(InputError, match=problem):
        load(checkpoint(captioner, tmp_path / "a.ckpt"))


def test_where_prompts_are_read_is_kept(encoder: Encoder, tmp_path: Path) -> None:
    captioner = demo_captioner(encoder)
    provider = build_provider(ENTITIES, encoder)
    captioner.use_prompts(provider)
    assert not captioner.prompts_first and "first" not in captioner.describe()["prompts"]
    captioner.use_prompts(provider, first=True)
    embeddings = encoder.encode_texts(["a purple crescent in the snow", "a red star"])  # in place of pictures
    loaded = load(checkpoint(captioner, tmp_path / "a.ckpt"))
    assert loaded.prompts_first and loaded.caption(embeddings) == captioner.caption(embeddings)
    loaded.use_prompts({**ENTITIES, "top_k": 2})  # another provider, for the same weights
    assert loaded.prompts_first
    loaded.use_prompts({**ENTITIES, "first": False})
    assert not loaded.prompts_first and loaded.caption(embeddings) != captioner.caption(embeddings)
    captioner.prompts = {**ENTITIES, "first": "yes"}
    with pytest.raises(InputError, match="first"):
        load(checkpoint(captioner, tmp_path / "b.ckpt"))


def test_a_captioner_makes_prompts_by_a_description(encoder: Encoder) -> None:
    captioner = demo_captioner(encoder)
    embeddings = encoder.encode_texts(["a red star", "a blue ring"])
    captioner.use_prompts(build_provider(ENTITIES, encoder), max_prompt_tokens=20)
    assert captioner.prompts is not None
    changed = captioner.prompts | {"vocabulary": ["red star", "green heart"], "template": "{}!", "threshold": 0.9}
    captioner.use_prompts(changed)
    expected = build_provider(changed, encoder).prompts(embeddings)
    assert captioner.image_prompts(embeddings) == expected and expected[0].text == "red star!"
    assert captioner.describe()["prompts"]["max_prompt_tokens"] == 20
    with pytest.raises(InputError, match="least"):
        captioner.use_prompts(changed | {"least": 2})
