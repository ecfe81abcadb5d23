"""Embedding on a Ray cluster: the same store, byte for byte, as one process makes, whatever is lost on the way.

The tests are slow because Ray starts a cluster, and in it each worker and its replacement import torch anew.
"""

import os
import signal
import tarfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_prep.cluster import ClusterMaker
from data_prep.embedding import embed, fill_store
from data_prep.pieces import EncodedPiece
from data_prep.readers import read_dataset
from data_prep.records import Dataset, ImageRecord, Skipped, dataset_from_files
from prefixcap.encoders import load_encoder
from prefixcap.errors import InputError
from prefixcap.store.writer import pieces_of
from prefixcap.utils.cluster import Shape, worker_shape
from tests.processes import python, start

FEATURES = ("image", "caption")
SIZES = {"batch_size": 4, "piece_size": 5}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of noise, with a file that is no image."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(120):
        Image.effect_noise((60, 50), 10 + number % 80).save(folder / f"{number:03d}.jpg")
    (folder / "007.jpg").write_bytes(b"no image")
    return folder


def noise(images: Path) -> Dataset:
    """The folder in shards of seven images, which are two pieces each."""
    records = [
        ImageRecord(number, file.name, "val" if number % 9 == 0 else "train", (f"a noise, {number}",) * (number % 3))
        for number, file in enumerate(sorted(images.iterdir()))
    ]
    return dataset_from_files(records, [Skipped("x", "", "left out by the reader")], images, "noise", shard_size=7)


def contents(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in store.iterdir()}


@pytest.fixture(scope="module")
def alone(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The store that one process makes."""
    store = tmp_path_factory.mktemp("stores") / "alone"
    embed(noise(images), load_encoder("demo"), store, FEATURES, progress=False, **SIZES)
    return contents(store)


def embed_on_cluster(dataset: Dataset, store: Path, make: Callable[..., Generator[EncodedPiece]] | None = None) -> None:
    maker = ClusterMaker("demo", features=FEATURES)
    if make is not None:
        maker.make = partial(make, maker)  # type: ignore[method-assign]
    try:
        fill_store(dataset, maker, store, progress=False, **SIZES)
    finally:
        maker.close()


def kill_the_first(maker: ClusterMaker, *arguments: Any) -> Generator[EncodedPiece]:
    """The pieces; the worker that is there at the start is killed after three of them."""
    pid = maker._workers._ray.get(maker._workers._idle[0].__ray_call__.remote(lambda worker: os.getpid()))
    for number, piece in enumerate(ClusterMaker.make(maker, *arguments)):
        yield piece
        if number == 2:
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(
    cluster: str, images: Path, alone: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embed_on_cluster(noise(images), tmp_path / "store", kill_the_first)
    assert contents(tmp_path / "store") == alone
    assert "a worker failed, and its work is done again: ActorDiedError" in capsys.readouterr().err


def stop_at_the_fourth(maker: ClusterMaker, *arguments: Any) -> Generator[EncodedPiece]:
    """The first three pieces; then nothing, until the process is killed."""
    for number, piece in enumerate(ClusterMaker.make(maker, *arguments)):
        if number == 3:
            time.sleep(600)
        yield piece


def embed_elsewhere(address: str, images: Path, store: Path) -> None:
    os.environ["RAY_ADDRESS"] = address
    embed_on_cluster(noise(images), store, stop_at_the_fourth)


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(cluster: str, images: Path, alone: dict[str, bytes], tmp_path: Path) -> None:
    store = tmp_path / "store"
    process = start(embed_elsewhere, cluster, images, store)
    while process.is_alive() and len(pieces_of(store)) < 3:
        time.sleep(0.01)
    process.kill()
    process.join()
    kept = {file: file.stat().st_mtime_ns for file in pieces_of(store).values()}
    assert len(kept) == 3
    seen: list[Path] = []

    def watched(maker: ClusterMaker, *arguments: Any) -> Generator[EncodedPiece]:
        for piece in ClusterMaker.make(maker, *arguments):
            yield piece
            seen.extend(file for file in kept if file.exists() and file.stat().st_mtime_ns == kept[file])

    embed_on_cluster(noise(images), store, watched)
    assert set(seen) == kept.keys()  # what was there was not written again
    assert contents(store) == alone


class Shattered:
    """A shard that cannot be read."""

    size = 1

    def fingerprint(self) -> str:
        return "shattered"

    def read(self) -> Any:
        raise OSError("the disk is gone")


@pytest.mark.slow
def test_a_task_that_fails_again_and_again_is_told_in_one_line(cluster: str, images: Path, tmp_path: Path) -> None:
    broken = Dataset([*noise(images).shards[:1], Shattered()], [], images, "noise")
    with pytest.raises(InputError, match=r"^a task failed 3 times on the cluster, at last by OSError: .*disk is gone"):
        embed_on_cluster(broken, tmp_path / "store")


@pytest.fixture
def address_of_shards(tmp_path: Path) -> Iterator[str]:
    """The URL of three tars of images with captions, of which one is in the folder `val`."""
    for number, name in enumerate(["00000.tar", "00001.tar", "val/00002.tar"]):
        file = tmp_path / "bucket" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(file, "w") as tar:
            for image in range(6):
                key = tmp_path / f"{number:05d}{image:04d}"
                Image.effect_noise((60, 50), 10 + 9 * image + number).save(key.with_suffix(".jpg"))
                key.with_suffix(".txt").write_text(f"noise {image}")
                tar.add(key.with_suffix(".jpg"), f"{key.name}.jpg")
                tar.add(key.with_suffix(".txt"), f"{key.name}.txt")
    handler = partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/bucket"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_shards_behind_a_url(address_of_shards: str, tmp_path: Path) -> None:
    remote = read_dataset({"name": "img2dataset", "root": f"{address_of_shards}/"})
    local = read_dataset({"name": "img2dataset", "root": str(tmp_path / "bucket")})
    assert len(remote.shards) == len(local.shards) == 3
    for there, here in zip(remote.shards, local.shards, strict=True):
        (samples, skipped), (expected, expected_skipped) = there.read(), here.read()
        assert skipped == expected_skipped == []
        assert [sample.record for sample in samples] == [sample.record for sample in expected]
        assert [sample.read() for sample in samples] == [sample.read() for sample in expected]
    with pytest.raises(InputError, match=r"^cannot list http://127\.0\.0\.1:\d+/bucket/none: .*; check the address"):
        read_dataset({"name": "img2dataset", "root": f"{address_of_shards}/none"})


@pytest.mark.slow
def test_the_command_on_shards_behind_a_url(cluster: str, address_of_shards: str, tmp_path: Path) -> None:
    command = ["-m", "data_prep.embed", "data=cc3m", f"data.root={address_of_shards}", "encoder=demo"]
    stores = {"alone": [], "ray": ["engine=ray"]}
    for name, more in stores.items():
        environment = os.environ | {"RAY_ADDRESS": cluster}
        done = python(*command, f"data.store={tmp_path / name}", "batch_size=4", *more, environment=environment)
        assert done.returncode == 0, done.stderr
        assert "captions: 18" in done.stdout
    assert contents(tmp_path / "ray") == contents(tmp_path / "alone")


def test_workers_for_a_cluster() -> None:
    machines = [{"CPU": 128.0, "GPU": 8.0}, {"CPU": 64.0, "GPU": 8.0}, {"CPU": 16.0}]
    assert worker_shape(machines, "auto", None) == Shape(16, 8, 1)
    assert worker_shape(machines, "auto", 15) == Shape(12, 16, 1)
    assert worker_shape(machines, "cpu", 3) == Shape(52, 4, 0)
    with pytest.raises(InputError, match="no GPU"):
        worker_shape(machines[2:], "gpu", None)
    with pytest.raises(InputError, match="a worker with 16 to read images takes 17 cores"):
        worker_shape(machines[2:], "auto", 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["engine=spark"], "there is no engine=spark: give engine=ray"),
        (["engine=ray", "trainer.devices=2"], "leave out trainer.devices=2"),
    ],
)
def test_mistakes(options: list[str], message: str, tmp_path: Path) -> None:
    done = python("-m", "data_prep.embed", f"data.root={tmp_path}/demo", f"data.store={tmp_path}/store", *options)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_without_ray(tmp_path: Path) -> None:
    """The one line that says how to install it, before torch is imported."""
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from prefixcap.utils.cluster import connect\n"
        "from prefixcap.errors import InputError\n"
        "try: connect()\n"
        "except InputError as error: print(error)\n"
    )
    assert python("-c", code).stdout == "work on a cluster needs Ray: pip install 'prefixcap[ray]'\n"
