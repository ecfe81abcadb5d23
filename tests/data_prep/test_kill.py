"""A run that is killed at any moment goes on where it was, and ends in the same store."""

import json
import random
import time
from pathlib import Path

import pytest
from PIL import Image

import prefixcap.store.writer
from data_prep.embedding import embed
from data_prep.records import ImageRecord, Skipped, dataset_from_files
from prefixcap.encoders import load_encoder
from prefixcap.store.part import Part
from prefixcap.store.writer import pieces_of
from tests.processes import start


def make(images: Path, store: Path) -> None:
    """Embed all images of a folder, in small shards, smaller pieces and small parts."""
    prefixcap.store.writer.PART_BYTES = 16_000
    names = sorted(file.name for file in images.iterdir())
    records = [
        ImageRecord(number, name, "val" if number % 9 == 0 else "train", (f"a noise, {name}",) * (number % 3))
        for number, name in enumerate(names)
    ]
    dataset = dataset_from_files(records, [Skipped("x", "", "left out by the reader")], images, "noise", shard_size=40)
    embed(dataset, load_encoder("demo"), store, batch_size=5, piece_size=10, progress=False)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(300):
        Image.effect_noise((60, 50), 10 + number % 80).save(folder / f"{number:03d}.jpg")
    (folder / "007.jpg").write_bytes(b"no image")
    return folder


@pytest.mark.slow
def test_killed_twenty_times(images: Path, tmp_path: Path) -> None:
    """Slow because it embeds 300 images in 20 parts, each in a process of its own."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    start(make, images, whole).join()
    moments, kept, half_made = random.Random(0), 0, 0
    for _ in range(20):
        process = start(make, images, killed)
        more = moments.randint(0, 2)
        while process.is_alive() and len(pieces_of(killed)) < kept + more:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.join()
        pieces = len(pieces_of(killed))
        finished = (killed / "index.json").exists()
        assert finished or pieces >= kept  # nothing that was made is lost
        kept, half_made = pieces, half_made + (0 < pieces < 31)
    assert half_made >= 5
    last = start(make, images, killed)
    last.join()
    assert last.exitcode == 0
    assert contents(killed) == contents(whole)


def contents(store: Path) -> dict[str, object]:
    """Every byte of the data of a store, by file."""
    found: dict[str, object] = {"skipped.csv": (store / "skipped.csv").read_text()}
    index = json.loads((store / "index.json").read_text())
    found["index.json"] = index
    for entry in index["parts"]:
        part = Part(store / entry["file"])
        assert part.digest() == part.attributes["digest"] == entry["digest"]
        columns = {name: part[name] for name in part.names}
        found[entry["file"]] = {n: c if isinstance(c, list) else (c.dtype, c.tobytes()) for n, c in columns.items()}
    assert len(index["parts"]) > 3
    assert sorted(file.name for file in store.iterdir()) == sorted(
        ["index.json", "skipped.csv", *(entry["file"] for entry in index["parts"])]
    )
    return found
