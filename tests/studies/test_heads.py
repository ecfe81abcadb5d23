"""The heads for photographs are trained, on made-up features whose structure is known."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from prefixcap.encoders.heads import read_heads
from prefixcap.errors import InputError
from prefixcap.photos import HEADS
from prefixcap.training.heads import recalls
from studies.photographs import heads

SIZES = {"train": 200, "val": 40, "test": 40}
SHORT = ("--epochs", "10", "--batch", "100")


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of both kinds that are linear in what a photograph shows, 10 numbers, beside noise."""
    folder, random = tmp_path_factory.mktemp("features"), np.random.default_rng(0)
    shown = random.standard_normal((sum(SIZES.values()), 10))
    said = shown.repeat(5, axis=0)
    for kind, content, size in (("image", shown, 1280), ("caption", said, 384)):
        values = content @ random.standard_normal((10, size)) + random.standard_normal((len(content), size))
        np.save(folder / f"{kind}_features.npy", values.astype(np.float16))
    captions = {split: {f"{split}{n}.jpg": ["A dog."] * 5 for n in range(size)} for split, size in SIZES.items()}
    (folder / "captions.json").write_text(json.dumps(captions))
    return folder


@pytest.fixture(scope="module")
def written(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "heads.safetensors"
    heads.main(["--data", str(features), "--out", str(path), *SHORT])
    return path


def test_photographs_and_captions_of_the_test_split_find_each_other(features: Path, written: Path) -> None:
    trained = recalls(heads.read_splits(features)["test"], *read_heads(written, "written"))
    assert min(trained[:6]) > 0.5  # by chance Recall@1 is 1 in 40, Recall@10 of captions 1 in 4
    assert trained[6] > 0.5


def test_the_file_has_the_format_that_the_encoder_reads(written: Path) -> None:
    with safe_open(written, "pt") as made, safe_open(HEADS, "pt") as packaged:
        assert set(made.keys()) == set(packaged.keys())
        for key in made.keys():  # noqa: SIM118  safe_open has no iterator
            assert made.get_slice(key).get_shape() == packaged.get_slice(key).get_shape(), key
            assert made.get_slice(key).get_dtype() == ("F32" if key in ("image.mean", "image.std") else "F16"), key
    assert written.stat().st_size < 8e6


def test_the_same_seed_gives_the_same_file_and_another_seed_another(
    features: Path, written: Path, tmp_path: Path
) -> None:
    for seed in "01":
        heads.main(["--data", str(features), "--out", str(tmp_path / seed), "--seed", seed, *SHORT])
    assert (tmp_path / "0").read_bytes() == written.read_bytes() != (tmp_path / "1").read_bytes()


@pytest.mark.parametrize("missing", ["image_features.npy", "captions.json"])
def test_a_folder_that_lacks_a_file_is_refused(features: Path, missing: str, tmp_path: Path) -> None:
    shutil.copytree(features, tmp_path / "copy")
    (tmp_path / "copy" / missing).unlink()
    with pytest.raises(InputError, match=missing):
        heads.read_splits(tmp_path / "copy")


def test_features_and_captions_that_do_not_fit_together_are_refused(features: Path, tmp_path: Path) -> None:
    shutil.copytree(features, tmp_path / "copy")
    np.save(tmp_path / "copy" / "image_features.npy", np.zeros((7, 1280), np.float16))
    with pytest.raises(InputError, match="7 and 1400 features for 1400 captions"):
        heads.read_splits(tmp_path / "copy")
