"""Embedding: what ends up in the store, whatever happens on the way."""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from clip.model import CLIP
from PIL import Image
from torch import Tensor

from data_prep.embedding import embed
from data_prep.loading import in_threads
from data_prep.readers.coco import read_coco
from data_prep.records import Dataset, ImageRecord, Skipped, dataset_from_files
from data_prep.stores import store_path
from prefixcap.encoders import PatchFeatures, load_encoder
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity
from prefixcap.store import FeatureStore
from prefixcap.utils.files import temporary_path
from tests.data_prep import records


class MeanColour:
    """An encoder whose embedding is the mean colour of the image: easy to foresee."""

    def __init__(self, digest: str = "ab" * 32, fail_at: int | None = None) -> None:
        self.identity = EncoderIdentity("mean colour", digest, "none", dim=3)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.fail_at = fail_at
        self.seen = -1  # images, after the one that is tried

    def preprocess(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(image.convert("RGB").resize((4, 4)))).permute(2, 0, 1).float()

    def encode_images(self, pixels: Tensor) -> Tensor:
        if self.fail_at is not None and self.seen >= self.fail_at:
            raise KeyboardInterrupt
        self.seen += len(pixels)
        return pixels.mean(dim=(2, 3))

    def encode_patches(self, pixels: Tensor) -> PatchFeatures:
        raise NotImplementedError

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        raise NotImplementedError


def dataset(root: Path, count: int = 10, shard_size: int = 3) -> Dataset:
    """Grey images; the number of each is its brightness."""
    root.mkdir(exist_ok=True)
    records = []
    for number in range(count):
        Image.new("L", (6, 5), number).save(root / f"{number}.png")
        split = "val" if number % 5 == 4 else "train"
        records.append(ImageRecord(number, f"{number}.png", split, (f"grey {number}", "grey")))
    return dataset_from_files(records, [Skipped(99, "", "empty caption")], root, "greys", shard_size)


def contents(store: Path) -> dict[str, object]:
    """Everything in the store's parts, and its other files as they are."""
    found: dict[str, object] = {file.name: file.read_bytes() for file in store.iterdir() if file.suffix != ".h5"}
    for file in store.glob("*.h5"):
        with h5py.File(file) as part:
            found |= {f"{file.name} {key}": np.asarray(value).tolist() for key, value in part.attrs.items()}
            for group in ("images", "captions", "skipped"):
                found |= {f"{file.name} {group}/{name}": column[()].tolist() for name, column in part[group].items()}
    return found


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("piece_size", [1, 4, 1000])
def test_a_store_from_images(tmp_path: Path, num_workers: int, piece_size: int) -> None:
    data = dataset(tmp_path / "images", shard_size=7)
    report = embed(data, MeanColour(), tmp_path / "store", batch_size=2, num_workers=num_workers, piece_size=piece_size)
    assert (report.written, report.resumed) == (10, 0)
    assert report.skipped == data.skipped
    store = FeatureStore(tmp_path / "store")
    assert store.splits == {"train": 8, "val": 2}
    split = store.split("val")
    assert split.ids == [4, 9]
    assert split.files == [tmp_path / "images" / "4.png", tmp_path / "images" / "9.png"]
    assert split.embeddings[:].tolist() == [[4, 4, 4], [9, 9, 9]]
    assert split.references() == {4: ["grey 4", "grey"], 9: ["grey 9", "grey"]}
    assert sorted(file.name for file in (tmp_path / "store").iterdir()) == [
        "index.json",
        "part-00000.h5",
        "skipped.csv",
    ]


def test_a_finished_store_is_left_alone(tmp_path: Path) -> None:
    data = dataset(tmp_path / "images")
    first = embed(data, MeanColour(), tmp_path / "store")
    written = (tmp_path / "store" / "index.json").stat().st_mtime_ns
    encoder = MeanColour()
    second = embed(data, encoder, tmp_path / "store")
    assert encoder.seen == -1
    assert (second.written, second.resumed, second.skipped) == (0, 10, first.skipped)
    assert (tmp_path / "store" / "index.json").stat().st_mtime_ns == written


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    data = dataset(tmp_path / "images")
    (tmp_path / "images" / "1.png").unlink()
    embed(data, MeanColour(), tmp_path / "whole", batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        embed(data, MeanColour(fail_at=7), tmp_path / "resumed", batch_size=2)
    with pytest.raises(InputError, match=r"unfinished \(2 of 4 shards\)"):
        FeatureStore(tmp_path / "resumed")
    encoder = MeanColour()
    report = embed(data, encoder, tmp_path / "resumed", batch_size=2)
    assert (report.written, report.resumed, encoder.seen) == (4, 5, 4)
    assert [skip.id for skip in report.skipped] == [99, 1]
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")


def test_a_damaged_part_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefixcap.store.writer.PART_BYTES", 1)
    data = dataset(tmp_path / "images")
    embed(data, MeanColour(), tmp_path / "store")
    before = contents(tmp_path / "store")
    os.truncate(tmp_path / "store" / "part-00002.h5", 1000)
    assert embed(data, MeanColour(), tmp_path / "store").written == 3
    assert contents(tmp_path / "store") == before


def test_bad_images_are_skipped_with_the_reason(tmp_path: Path) -> None:
    data = dataset(tmp_path / "images")
    images = tmp_path / "images"
    (images / "0.png").unlink()
    Image.effect_noise((64, 64), 50).save(images / "whole.jpg")
    (images / "1.png").write_bytes((images / "whole.jpg").read_bytes()[:1000])
    (images / "2.png").write_text("no image at all")
    (images / "3.png").write_bytes(b"")
    report = embed(data, MeanColour(), tmp_path / "store", batch_size=3)
    reasons = {skip.id: skip.reason for skip in report.skipped}
    assert reasons.pop(1).startswith("cannot be read")
    assert reasons == {99: "empty caption", 0: "missing file", 2: "not an image", 3: "empty file"}
    store = FeatureStore(tmp_path / "store")
    assert store.splits == {"val": 2, "train": 4}
    assert store.split("train").ids == [5, 6, 7, 8]
    assert (tmp_path / "store" / "skipped.csv").read_text().splitlines()[1:3] == [
        "99,,empty caption",
        "0,0.png,missing file",
    ]


def test_embeddings_that_are_not_finite_are_skipped(tmp_path: Path) -> None:
    class Sick(MeanColour):
        def encode_images(self, pixels: Tensor) -> Tensor:
            grey = super().encode_images(pixels)
            grey[grey == 3] = torch.nan
            grey[grey == 4] = 1e6  # too large for float16
            return grey

    report = embed(dataset(tmp_path / "images"), Sick(), tmp_path / "store")
    assert report.skipped[1:] == [Skipped(n, f"{n}.png", "embedding is not finite") for n in (3, 4)]
    assert FeatureStore(tmp_path / "store").splits == {"train": 7, "val": 1}


def test_no_image_at_all(tmp_path: Path) -> None:
    data = dataset(tmp_path / "images")
    wrong = dataset_from_files(records(data), [], tmp_path / "elsewhere", data.source, 3)
    with pytest.raises(InputError, match=r"none of the 10 images .*elsewhere/0\.png: missing file"):
        embed(wrong, MeanColour(), tmp_path / "store")
    assert embed(data, MeanColour(), tmp_path / "store").written == 10


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "a.jpg", exif=exif)
    sizes = []

    class Sizes(MeanColour):
        def preprocess(self, image: Image.Image) -> Tensor:
            sizes.append(image.size)
            return super().preprocess(image)

    data = dataset_from_files([ImageRecord(1, "a.jpg", "train", ("black",))], [], tmp_path, "one")
    embed(data, Sizes(), tmp_path / "store")
    assert sizes[-1] == (4, 8)


def test_another_job_is_refused(tmp_path: Path) -> None:
    data = dataset(tmp_path / "images")
    embed(data, MeanColour(), tmp_path / "store")
    with pytest.raises(InputError, match="another job"):
        embed(data, MeanColour(digest="cd" * 32), tmp_path / "store")
    fewer = dataset_from_files(records(data)[1:], data.skipped, data.image_root, data.source)
    with pytest.raises(InputError, match="another job"):
        embed(fewer, MeanColour(), tmp_path / "store")


def test_full_disk_keeps_earlier_shards(tmp_path: Path) -> None:
    data = dataset(tmp_path / "images")
    (tmp_path / "store" / "pieces").mkdir(parents=True)
    # /dev/full answers every write as a full disk does.
    temporary_path(tmp_path / "store" / "pieces" / "000002-0000-of-0001.h5").symlink_to("/dev/full")
    with pytest.raises(InputError, match="no space left on the disk"):
        embed(data, MeanColour(), tmp_path / "store")
    report = embed(data, MeanColour(), tmp_path / "store")
    assert (report.written, report.resumed) == (4, 6)


@pytest.mark.parametrize("values", [{"batch_size": 0}, {"batch_size": "abc"}, {"num_workers": -1}])
def test_values_that_make_no_sense(tmp_path: Path, values: dict[str, int]) -> None:
    with pytest.raises(InputError, match=rf"^{next(iter(values))} must be (an integer of )?at least \d"):
        embed(dataset(tmp_path / "images"), MeanColour(), tmp_path / "store", **values)


def test_store_path() -> None:
    assert store_path("coco", None, "clip:ViT-B/32") == Path("stores/coco-clip-ViT-B-32")
    assert store_path("coco", "elsewhere", "clip:ViT-B/32") == Path("elsewhere")


def test_photographs_with_a_clip(shared: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    clip = CLIP(
        embed_dim=32,
        image_resolution=32,
        vision_layers=1,
        vision_width=64,
        vision_patch_size=16,
        context_length=77,
        vocab_size=49408,
        transformer_width=64,
        transformer_heads=1,
        transformer_layers=1,
    )
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    encoder = load_encoder(f"clip:{tmp_path / 'clip.pt'}")
    report = embed(read_coco(shared / "coco_mini"), encoder, tmp_path / "store")
    assert (report.written, report.skipped) == (24, [])
    store = FeatureStore(tmp_path / "store")
    store.require_encoder(encoder.identity)
    assert store.splits == {"train": 16, "val": 4, "test": 4}
    assert store.captions == 120
    split = store.split("test")
    assert split.captions[:1] == split.references()[split.ids[0]][:1]
    with Image.open(split.files[2]) as image, torch.inference_mode():
        expected = encoder.encode_images(encoder.preprocess(image)[None])[0].numpy()
    assert np.allclose(split.embeddings[2], expected, atol=2e-3)


def test_too_many_bad_images_stop_the_run(tmp_path: Path) -> None:
    data = dataset(tmp_path / "images", count=30, shard_size=20)
    for number in range(4, 16):
        (tmp_path / "images" / f"{number}.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"12 of 20 images .* max_skipped=0\.01 .*images/15\.png: empty file; repair"):
        embed(data, MeanColour(), tmp_path / "store")
    assert embed(data, MeanColour(), tmp_path / "store", max_skipped=0.6).written == 18


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_processes_that_share_the_work_make_the_same_store(tmp_path: Path, order: tuple[int, ...]) -> None:
    data = dataset(tmp_path / "images")
    embed(data, MeanColour(), tmp_path / "alone")
    *before, last = order
    for task in before:
        assert embed(data, MeanColour(), tmp_path / "shared", task=task, tasks=3).missing > 0
    with pytest.raises(InputError, match="unfinished"):
        FeatureStore(tmp_path / "shared")
    assert embed(data, MeanColour(), tmp_path / "shared", task=last, tasks=3).missing == 0
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


def test_in_threads_works_ahead_in_order() -> None:
    begun = []

    def numbers() -> Iterator[int]:
        for number in range(1000):
            begun.append(number)
            yield number

    def on_one_thread(number: int) -> tuple[int, int]:
        time.sleep(0.01 if number % 3 == 0 else 0)
        return number, torch.get_num_threads()

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert list(in_threads(on_one_thread, range(40))) == [(number, 1) for number in range(40)]
        stream = in_threads(on_one_thread, numbers())
        assert [next(stream) for _ in range(3)] == [(0, 1), (1, 1), (2, 1)]
        stream.close()
        assert len(begun) < 12
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(threads)


def test_in_threads_raises_where_the_results_are_used() -> None:
    stream = in_threads(lambda number: 1 / number, [2, 1, 0, 4])
    assert [next(stream), next(stream)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(stream)


def test_the_store_does_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    encoder, data = load_encoder("demo"), dataset(tmp_path / "images", count=40, shard_size=20)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            embed(data, encoder, tmp_path / f"by{count}", features=["image", "caption"], batch_size=7)
    finally:
        torch.set_num_threads(threads)
    assert contents(tmp_path / "by1") == contents(tmp_path / "by3")
