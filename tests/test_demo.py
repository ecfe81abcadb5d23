"""The small world and its two models."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from prefixcap.demo import ASSETS
from prefixcap.demo.drawing import SIZE, draw
from prefixcap.demo.scenes import (
    ATTRIBUTES,
    DOMAINS,
    Scene,
    attribute_accuracy,
    captions,
    is_right,
    named_attributes,
    random_scene,
)
from prefixcap.demo.world import read_scenes, write_coco
from prefixcap.encoders import load_encoder
from prefixcap.errors import InputError
from prefixcap.language import load_language_model

SCENE = Scene("red", "star", "striped", "large", "left", "beach")


def test_five_captions_all_different_and_true() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        scene = random_scene(generator)
        written = captions(scene, generator)
        assert len(set(written)) == 5
        assert all(is_right(caption, scene) for caption in written)
        assert all({name for name, _ in named_attributes(caption)} == set(ATTRIBUTES) for caption in written[:3])


@pytest.mark.parametrize(
    ("caption", "right"),
    [
        ("A large red striped star on the left.", True),
        ("A red star.", True),
        ("A blue star on the left.", False),
        ("A red star and a circle.", False),
        ("A striped star.", False),  # names no colour
        ("", False),
    ],
)
def test_right_attributes(caption: str, right: bool) -> None:
    assert is_right(caption, SCENE) is right


def test_accuracy_by_domain() -> None:
    generator = np.random.default_rng(1)
    scenes = [random_scene(generator, domain) for domain in DOMAINS for _ in range(4)]
    written = [captions(scene, generator)[0] for scene in scenes]
    written[0] = written[4] = written[5] = "A thing."
    expected = {"in-domain": 0.75, "near-domain": 0.5, "out-of-domain": 1.0, "overall": 0.75}
    assert attribute_accuracy(written, scenes) == expected


def test_pictures_are_drawn_the_same_from_the_same_seed() -> None:
    first, second, other = (np.asarray(draw(SCENE, np.random.default_rng(seed))) for seed in (5, 5, 6))
    assert first.shape == (SIZE, SIZE, 3)
    assert (first == second).all() and (first != other).any()


def test_the_world_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"train": {"in-domain": 40}, "val": {"in-domain": 5}, "test": dict.fromkeys(DOMAINS, 5)}
    monkeypatch.setattr("prefixcap.demo.world.SPLITS", sizes)
    write_coco(tmp_path / "world")
    scenes = read_scenes(tmp_path / "world")
    karpathy = json.loads((tmp_path / "world" / "dataset_coco.json").read_text())["images"]
    assert len(scenes) == len(karpathy) == 60
    pairs = {
        (scenes[image["cocoid"]].colour, scenes[image["cocoid"]].shape)
        for image in karpathy
        if image["split"] != "test"
    }
    words = {word for pair in pairs for word in pair}
    for image in karpathy:
        scene = scenes[image["cocoid"]]
        assert all(is_right(sentence["raw"], scene) for sentence in image["sentences"])
        assert (tmp_path / "world" / image["filepath"] / image["filename"]).is_file()
        if scene.domain != "in-domain":
            assert (scene.colour, scene.shape) not in pairs and image["split"] == "test"
        if scene.domain == "out-of-domain":
            assert not {scene.colour, scene.shape} <= words
    before = (tmp_path / "world" / "captions_demo.json").stat().st_mtime_ns
    write_coco(tmp_path / "world")
    assert (tmp_path / "world" / "captions_demo.json").stat().st_mtime_ns == before


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and is not the small world"):
        write_coco(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_both_models_together_are_small() -> None:
    assert sum(file.stat().st_size for file in ASSETS.rglob("*") if file.is_file()) < 12e6


@pytest.mark.slow
def test_clip_finds_the_caption_of_a_scene() -> None:
    """Image-to-text recall@5 among 1,000 scenes; scenes that share a caption count as right for each other."""
    encoder = load_encoder("demo")
    generator = np.random.default_rng(12345)
    scenes = [random_scene(generator) for _ in range(1000)]
    written = [captions(scene, generator)[0] for scene in scenes]
    pixels = torch.stack([encoder.preprocess(draw(scene, generator)) for scene in scenes])
    with torch.inference_mode():
        images = torch.cat([encoder.encode_images(batch) for batch in pixels.split(250)])
        texts = torch.cat([encoder.encode_texts(written[start : start + 250]) for start in range(0, 1000, 250)])
    similarity = torch.nn.functional.normalize(images, dim=1) @ torch.nn.functional.normalize(texts, dim=1).T
    found = [
        written[scene] in {written[text] for text in best}
        for scene, best in enumerate(similarity.topk(5, dim=1).indices.tolist())
    ]
    assert np.mean(found) >= 0.6


def test_language_model_knows_the_world() -> None:
    """A true sentence of the world is likelier than the same words in disorder."""
    lm = load_language_model("demo")

    def loss(caption: str) -> float:
        tokens = torch.tensor(lm.tokenize([caption]))
        with torch.no_grad():
            return lm.model(input_ids=tokens, labels=tokens).loss.item()

    assert (
        loss("A large red striped star on the left on a beach.")
        < loss("striped left A star the beach large on red.") - 2
    )
