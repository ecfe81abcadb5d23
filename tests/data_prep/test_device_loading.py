"""Images that processes decode and the device, here the CPU, resizes: against those that the encoder prepares."""

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep import device_loading, pieces
from data_prep.device_loading import DeviceReader
from data_prep.embedding import embed
from data_prep.fast_decode import choose_reader, cosines, describe_cosines
from data_prep.jpeg import decode_jpegs, ordinary_jpeg
from data_prep.loading import PixelReader
from data_prep.records import Dataset, ImageRecord, Sample, dataset_from_files
from data_prep.resizing import is_supported
from prefixcap.encoders import Encoder, load_encoder
from prefixcap.encoders.protocol import ImageGeometry
from prefixcap.errors import InputError
from prefixcap.store import FeatureStore
from tests.data_prep.test_embed import MeanColour, contents

CPU = torch.device("cpu")
GEOMETRY = ImageGeometry(112, "bicubic", (112, 112), crop_rounds_down=False)  # of the encoder "demo"
ORIENTATION = 0x0112


def photograph(width: int, height: int, seed: int) -> Image.Image:
    """Colours that vary smoothly, with some noise."""
    numbers = np.random.default_rng(seed)
    small = Image.fromarray(numbers.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    noise = numbers.normal(0, 6, (height, width, 3))
    return Image.fromarray((np.asarray(small.resize((width, height))) + noise).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Images of many kinds; a missing one, a text, and half a file."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(20):
        photograph(150 + 30 * (number % 4), 130 + 40 * (number % 3), number).save(folder / f"{number:02d}.jpg")
    image = photograph(300, 200, 20)
    image.save(folder / "20.png")
    image.convert("L").save(folder / "21.jpg")
    image.convert("CMYK").save(folder / "22.jpg")
    image.save(folder / "23.jpg", progressive=True)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image.save(folder / "24.jpg", exif=exif)
    photograph(2000, 1500, 25).save(folder / "25.jpg")  # too large for the device
    photograph(60, 90, 26).save(folder / "26.jpg")  # to be enlarged
    (folder / "27.jpg").write_text("no image")
    (folder / "28.jpg").write_bytes(jpeg(image)[:2000])
    names = [*sorted(file.name for file in folder.iterdir()), "missing.jpg"]
    records = [ImageRecord(number, name, "train", ("a picture",)) for number, name in enumerate(names)]
    return dataset_from_files(records, [], folder, "pictures", shard_size=17)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder("demo")


def samples(data: Dataset) -> list[Sample]:
    return [sample for shard in data.shards for sample in shard.read()[0]]


def test_pixels_and_reasons_are_those_of_each_image_alone(data: Dataset, encoder: Encoder) -> None:
    batches = [samples(data)[:19], [], samples(data)[19:]]
    reader = DeviceReader(encoder.preprocess, None, GEOMETRY)
    for found, batch in zip(reader.in_processes(iter(batches), 2, CPU), batches, strict=True):
        expected = PixelReader(encoder.preprocess).read(batch)
        assert (found.positions, found.reasons) == (expected.positions, expected.reasons)
        assert torch.equal(found.images, expected.images)


def test_slots_are_written_to_again_and_again(data: Dataset, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_loading, "CHUNK", 2)
    monkeypatch.setattr(device_loading, "AHEAD", 1)
    monkeypatch.setattr(device_loading, "ROOM", 2 * 180 * 170 * 3)  # too little for some
    batches = [samples(data)[start : start + 5] for start in range(0, 30, 5)] * 3
    reader = DeviceReader(encoder.preprocess, None, GEOMETRY)
    expected = [PixelReader(encoder.preprocess).read(batch).images for batch in batches]
    for found, images in zip(reader.in_processes(batches, 2, CPU), expected, strict=True):
        assert torch.equal(found.images, images)


def test_too_little_shared_memory_is_told(data: Dataset, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux kills who writes to memory that is not there."""
    free = shutil.disk_usage("/dev/shm").free
    monkeypatch.setattr(device_loading, "ROOM", free)
    reader = DeviceReader(encoder.preprocess, None, GEOMETRY)
    with pytest.raises(InputError, match=r"shared memory, and /dev/shm has .* MB free .*: set num_workers=0"):
        next(reader.in_processes([samples(data)], 2, CPU))


def with_device_reader(monkeypatch: pytest.MonkeyPatch, decode: bool = False) -> None:
    """Let `embed` read as for a GPU."""
    monkeypatch.setattr(
        pieces, "choose_reader", lambda encoder, size, _: DeviceReader(encoder.preprocess, size, GEOMETRY, decode)
    )


def test_a_resumed_store_equals_one_that_the_cpu_prepared(
    data: Dataset, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(data, encoder, tmp_path / "cpu", batch_size=5, piece_size=9, max_skipped=1)
    with_device_reader(monkeypatch)
    embed(data, encoder, tmp_path / "device", batch_size=5, piece_size=9, max_skipped=1, tasks=2, num_workers=1)
    with pytest.raises(InputError, match="unfinished"):
        FeatureStore(tmp_path / "device")
    embed(data, encoder, tmp_path / "device", batch_size=5, piece_size=9, max_skipped=1, num_workers=2)
    assert contents(tmp_path / "device") == contents(tmp_path / "cpu")


def test_which_files_the_device_decodes(data: Dataset) -> None:
    ordinary = [sample.record.file for sample in samples(data) if ordinary_jpeg(sample, GEOMETRY)]
    assert ordinary == [f"{number:02d}.jpg" for number in range(20)]


def test_the_device_decodes_to_nearly_the_same(data: Dataset, encoder: Encoder) -> None:
    expected = PixelReader(encoder.preprocess).read(samples(data))
    reader = DeviceReader(encoder.preprocess, None, GEOMETRY, decode=True)
    (found,) = reader.in_processes([samples(data)], 1, CPU)
    assert (found.positions, found.reasons) == (expected.positions, expected.reasons)
    difference = (found.images.int() - expected.images.int()).abs()  # torchvision has a libjpeg of its own
    assert difference.max() <= 4 and difference.float().mean() < 0.1


def test_a_file_that_the_device_fails_at_is_decoded_by_pillow(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [torch.frombuffer(bytearray((data.image_root / f"0{n}.jpg").read_bytes()), dtype=torch.uint8) for n in "12"]
    damaged = files[0][:1000].clone()
    calls: list[int] = []

    def fail_at_some(files: list[torch.Tensor], mode: str, device: torch.device) -> list[torch.Tensor]:
        calls.append(len(files))
        if any(len(file) == 1000 or len(file) == len(unusual) for file in files):
            raise RuntimeError("nvjpegDecode failed")
        return [torch.zeros(3, 5, 6, dtype=torch.uint8) for _ in files]

    unusual = files[1]
    monkeypatch.setattr("torchvision.io.decode_jpeg", fail_at_some)
    with pytest.warns(UserWarning, match=r"Pillow decodes .* \(nvjpegDecode failed\)"):
        first, second, third = decode_jpegs([files[0], damaged, unusual], CPU)
    assert calls == [3, 1, 1, 1]
    assert isinstance(first, torch.Tensor) and first.shape == (5, 6, 3)
    assert isinstance(second, str) and second.startswith("cannot be read: image file is truncated")
    with Image.open(data.image_root / "02.jpg") as image:
        np.testing.assert_array_equal(third, np.asarray(image))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_decodes_to_no_memory_that_it_still_has_to_read(data: Dataset) -> None:
    """The images of one batch are given back while the GPU, which is busy, has not yet read them."""
    device = torch.device("cuda", 0)
    dark, bright = (
        torch.frombuffer(bytearray(jpeg(Image.new("RGB", (400, 300), (value,) * 3))), dtype=torch.uint8)
        for value in (10, 240)
    )
    torch.cuda.synchronize()
    images = decode_jpegs([dark] * 8, device)
    torch.cuda._sleep(1 << 30)  # cycles, about half a second
    read = torch.stack([image for image in images if isinstance(image, torch.Tensor)]).float().mean()
    del images
    later = decode_jpegs([bright] * 8, device)
    assert read.item() == pytest.approx(10, abs=3) and len(later) == 8


def test_readers(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(choose_reader(encoder, None, 2)) is PixelReader
    monkeypatch.setattr(encoder, "device", torch.device("cuda"))
    assert type(choose_reader(encoder, None, 0)) is PixelReader
    on_gpu = choose_reader(encoder, None, 2)
    assert isinstance(on_gpu, DeviceReader) and not on_gpu.decode
    fast = choose_reader(encoder, 112, 2)
    assert isinstance(fast, DeviceReader) and fast.decode
    other = MeanColour()  # says nothing about its geometry
    other.device = torch.device("cuda")
    assert type(choose_reader(other, None, 2)) is PixelReader
    assert not is_supported(ImageGeometry(256, "bicubic", (224, 224), crop_rounds_down=False))
    assert not is_supported(ImageGeometry(224, "bilinear", (224, 224), crop_rounds_down=False))


def test_fast_decoding_is_recorded_and_measured(
    data: Dataset, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_device_reader(monkeypatch, decode=True)
    embed(data, encoder, tmp_path / "store", fast_decode=True, max_skipped=1, num_workers=1)
    printed = capsys.readouterr().err
    assert re.search(r"fast_decode: cosine to the embeddings without it, of 27 images: mean (0\.999|1\.000)", printed)
    made_with = FeatureStore(tmp_path / "store").made_with
    assert made_with["fast_decode"] == "nvjpeg" and "jpeg_scaling" not in made_with
    monkeypatch.undo()
    with pytest.raises(InputError, match="another job"):
        embed(data, encoder, tmp_path / "store", fast_decode=True, max_skipped=1)


def test_cosines_are_those_of_the_embeddings(data: Dataset, encoder: Encoder) -> None:
    values = cosines(data, encoder, PixelReader(encoder.preprocess, 112), 0)
    expected = []
    for sample in samples(data):
        try:
            full, scaled = (
                encoder.encode_images(encoder.preprocess(sample.open(size))[None])[0] for size in (None, 112)
            )
        except InputError:
            continue
        expected.append((full @ scaled / full.norm() / scaled.norm()).item())
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert min(expected) < 0.99999  # some were scaled
    assert describe_cosines(torch.tensor([0.99, 1.0])) == (
        "fast_decode: cosine to the embeddings without it, of 2 images: mean 0.99500, lowest 0.99000; "
        "the mean is below 0.999: better without fast_decode"
    )
    assert describe_cosines(torch.ones(3)).endswith("mean 1.00000, lowest 1.00000")
    assert "none of the first images can be read" in describe_cosines(torch.empty(0))
