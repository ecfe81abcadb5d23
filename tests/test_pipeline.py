"""A captioner called as an image-to-text pipeline of transformers was: its output, and its options in our words."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from prefixcap.captioner import Captioner
from prefixcap.encoders import load_encoder
from prefixcap.errors import InputError
from prefixcap.language import load_language_model


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    torch.manual_seed(0)
    identity = load_encoder("demo").identity
    return Captioner(load_language_model("demo"), identity, {"name": "mlp", "prefix_length": 4}).eval()


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    for colour in ("red", "blue"):
        Image.new("RGB", (40, 30), colour).save(folder / f"{colour}.png")
    return [str(folder / "red.png"), str(folder / "blue.png")]


def texts(output: list[dict[str, str]]) -> list[str]:
    assert all(caption.keys() == {"generated_text"} for caption in output)
    return [caption["generated_text"] for caption in output]


def test_one_image_gives_a_list_and_several_a_list_of_lists(captioner: Captioner, paths: list[str]) -> None:
    expected = captioner.caption(paths, max_tokens=8)
    for image in (paths[0], Path(paths[0]), Image.open(paths[0])):
        assert texts(captioner(image, max_new_tokens=8)) == expected[:1]
    for images in (paths, [Image.open(path) for path in paths], captioner.embed(paths)):
        assert [texts(of_image) for of_image in captioner(images, max_new_tokens=8)] == [[text] for text in expected]
    assert captioner([]) == []


@pytest.mark.parametrize(
    ("given", "own"),
    [
        ({"num_return_sequences": 3}, {"count": 3}),
        ({"generate_kwargs": {"num_beams": 2, "length_penalty": 0.0}}, {"beams": 2, "length_penalty": 0.0}),
        ({"generate_kwargs": {"num_beams": 1, "do_sample": False}}, {"decode": "greedy"}),
        ({"do_sample": True, "top_p": 0.7, "seed": 3}, {"decode": "nucleus", "top_p": 0.7, "seed": 3}),
        ({"penalty_alpha": 0.6, "top_k": 4}, {"decode": "contrastive", "penalty": 0.6, "top_k": 4}),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}, {"beams": 4, "groups": 2, "diversity": 1.0}),
        ({"min_new_tokens": 8, "no_repeat_ngram_size": 2}, {"min_tokens": 8, "no_repeat_ngram": 2}),
        ({"decode": "clipcap", "prompt": "a photo of", "batch_size": 1}, {"decode": "clipcap", "prompt": "a photo of"}),
    ],
)  # fmt: skip
def test_options_of_generate(captioner: Captioner, paths: list[str], given: Any, own: Any) -> None:
    found = [texts(of_image) for of_image in captioner(paths, max_new_tokens=12, **given)]
    options = {"count": 1} | own
    assert found == captioner.candidates(paths, max_tokens=12, **options)
    assert found != captioner.candidates(paths, options["count"], max_tokens=12, beams=3), "the options do nothing here"


def test_options_without_a_counterpart_are_told(captioner: Captioner, paths: list[str]) -> None:
    with pytest.raises(InputError, match=r"decoder 'beam': .*unexpected keyword argument 'timeout'"):
        captioner(paths[0], timeout=3)
    with pytest.raises(InputError, match="'max_new_tokens' is given twice, within generate_kwargs and beside it"):
        captioner(paths[0], max_new_tokens=3, generate_kwargs={"max_new_tokens": 3})
    with pytest.raises(InputError, match=r"absent\.png: missing file"):
        captioner("absent.png")


def test_a_call_is_that_of_a_module(captioner: Captioner, paths: list[str]) -> None:
    seen: list[Any] = []
    hook = captioner.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        output = captioner(paths[0], max_new_tokens=4)
    finally:
        hook.remove()
    assert seen == [output]
