"""`python -m studies.prompts`: the cells of its table, from evaluations whose scores are known."""

import json
from pathlib import Path

import numpy as np
import pytest

from prefixcap.demo.scenes import DOMAINS, captions
from prefixcap.demo.world import read_scenes, write_coco
from prefixcap.metrics import score_captions
from studies import prompts


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small world of six test scenes in each domain."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prefixcap.demo.world.SPLITS", {"test": dict.fromkeys(DOMAINS, 6)})
    write_coco(prompts.WORLD)
    return tmp_path


def test_cells_are_means_over_domains_and_seeds(world: Path) -> None:
    scenes = read_scenes(prompts.WORLD)
    references = {image: captions(scene, np.random.default_rng(image)) for image, scene in scenes.items()}
    folders = []
    for seed in (0, 1):
        # All captions of one seed are true; of the other, those of the out-of-domain scenes are of another scene.
        said = {image: references[image][0] for image in scenes}
        if seed:
            outside = [image for image, scene in scenes.items() if scene.domain == "out-of-domain"]
            said |= dict.fromkeys(outside, "A red circle on a red square.")
        scores = score_captions(said, references, ["CIDEr"])
        folder = world / f"eval-{seed}"
        folder.mkdir()
        entries = [{"image_id": image, "caption": text} for image, text in said.items()]
        (folder / "captions.json").write_text(json.dumps(entries))
        np.savez(folder / "statistics.npz", CIDEr=scores.statistics["CIDEr"])
        folders.append(folder)
    runs = prompts.statistics(folders)
    *cider, inside, near, outside_right = prompts.cells(runs)
    assert [inside[0], near[0], outside_right[0]] == [1, 1, 0.5]
    assert inside[1] == pytest.approx(0) and outside_right[1] > 0.1
    for domain, (score, half) in zip(DOMAINS, cider, strict=True):
        expected = []
        for folder in folders:
            rows = [row for row, scene in enumerate(scenes.values()) if scene.domain == domain]
            with np.load(folder / "statistics.npz") as arrays:
                expected.append(arrays["CIDEr"][rows][:, 0].sum() / arrays["CIDEr"][rows][:, 1].sum())
        assert score == pytest.approx(np.mean(expected)) and half > 0
    first, second = (prompts.statistics([folder]) for folder in folders)
    same, _, outside_cider, *right_less = prompts.differences(first, second)
    assert same == "+0.000 ± 0.000 (p = 1.000)" == right_less[0] == right_less[1]
    less = prompts.cells(first)[2][0] - prompts.cells(second)[2][0]
    assert outside_cider.startswith(f"{less:+.3f} ± ") and right_less[2].startswith("+1.000 ± 0.000 (p = 0.00")


def test_rows_of_both_datastores_share_their_training() -> None:
    assert prompts.ROWS["captions-1-training"].train == prompts.ROWS["captions-1-others"].train
    assert prompts.ROWS["captions-1-training"].datastore != prompts.ROWS["captions-1-others"].datastore
    assert not prompts.ROWS["none"].train
