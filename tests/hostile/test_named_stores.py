"""Stores behind URLs, and those that a checkpoint names: nothing is written outside the cache, or opened unasked."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from prefixcap.captioner import Captioner
from prefixcap.encoders import load_encoder
from prefixcap.errors import InputError
from prefixcap.language import load_language_model
from prefixcap.store import FeatureStore
from prefixcap.store.named import open_training_store
from prefixcap.store.remote import cache_folder
from tests.evaluation.test_eval import evaluate, make_store
from tests.hostile.test_stores import content, replaced, rewrite, write


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder; a file beside which NAME.endless lies never ends, and its length is not told."""

    asked: list[str]
    sent: list[int]

    def do_GET(self) -> None:
        if self.begins_endless():
            with suppress(OSError):
                while True:
                    self.sent.append(self.wfile.write(b" " * 2**16))
        else:
            super().do_GET()

    def do_HEAD(self) -> None:
        if not self.begins_endless():
            super().do_HEAD()

    def begins_endless(self) -> bool:
        self.asked.append(self.path)
        endless = Path(self.translate_path(self.path)).with_suffix(".endless").exists()
        if endless:
            self.send_response(200)
            self.end_headers()
        return endless

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """Its address, and the store that it serves; what was asked of it is in `Handler.asked`."""
    monkeypatch.setenv("PREFIXCAP_CACHE", str(tmp_path / "home" / "cache"))
    served = tmp_path / "served"
    write(served / "store")
    Handler.asked, Handler.sent = [], []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(served))) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}/store", served / "store"
        listening.shutdown()


def change_index(store: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    index = json.loads((store / "index.json").read_text())
    change(index)
    (store / "index.json").write_text(json.dumps(index))


def written(tmp_path: Path) -> set[str]:
    """Files outside of the served folder, by their paths from the cache."""
    cache = tmp_path / "home" / "cache" / "stores"
    files = [file for file in (tmp_path / "home").rglob("*") if file.is_file()]
    return {str(Path(*file.relative_to(cache).parts[1:])) for file in files}


def test_a_store_over_http(server: tuple[str, Path], tmp_path: Path) -> None:
    url, store = server
    here, there = content(store), FeatureStore(url)
    for name in there.splits:
        split, own = there.split(name), FeatureStore(store).split(name)
        assert split.ids == own.ids and split.captions[:] == own.captions[:]
        assert split.files == [None] * len(own)  # paths of another machine
    assert here[0] == there.splits and there.image_root is None
    assert written(tmp_path) == {
        f"store/{file}" for file in ("index.json", ".lock", "part-00000.h5", "part-00000.sha256")
    }
    Handler.asked.clear()
    FeatureStore(url).split("train")
    assert {Path(path).name for path in Handler.asked} == {"index.json"}


@pytest.mark.parametrize(
    "file", ["/{}/home/evil", "../../../evil", "../evil", "evil", "index.json", "part-00000.h5/../x"]
)
def test_a_part_with_another_name_is_not_fetched(file: str, server: tuple[str, Path], tmp_path: Path) -> None:
    url, store = server
    change_index(store, lambda index: index["parts"][0].update(file=file.format(tmp_path)))
    with pytest.raises(InputError, match=r"/index\.json: parts\.0\.file") as caught:
        FeatureStore(url)
    told = str(caught.value).partition(", not ")[0]  # then comes the name that was given
    assert url in told and str(tmp_path) not in told
    assert {Path(path).name for path in Handler.asked} == {"index.json"}
    assert written(tmp_path) == {"store/.lock"}  # not even the index


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda part: part.write_bytes(part.read_bytes()[:-1]), "part-00000.h5"),
        (lambda part: part.write_bytes(part.read_bytes() + b"\0"), "larger than the"),
        (lambda part: part.write_bytes(bytes(part.stat().st_size)), "damaged or no HDF5 file"),
        (lambda part: part.write_bytes(part.read_bytes().replace("Käfer".encode(), b"Kaffer")), "its digest differs"),
        (lambda part: rewrite(part.parent, replaced("images/embedding", compression="gzip")), "in chunks"),
        (lambda part: part.with_suffix(".endless").touch(), "larger than the"),
        (lambda part: part.unlink(), "cannot fetch"),
    ],
)
def test_a_part_that_is_not_as_announced_is_not_kept(
    change: Callable[[Path], Any], message: str, server: tuple[str, Path], tmp_path: Path
) -> None:
    url, store = server
    opened = FeatureStore(url)
    change(store / "part-00000.h5")
    if message == "in chunks":
        opened = FeatureStore(url)
    with pytest.raises(InputError, match=message) as caught:
        opened.split("train")
    assert f"{url}/part-00000.h5" in str(caught.value) and "\n" not in str(caught.value)
    assert written(tmp_path) == {"store/.lock", "store/index.json"}
    assert sum(Handler.sent) < 2**25


def test_an_index_without_end(server: tuple[str, Path], tmp_path: Path) -> None:
    url, store = server
    (store / "index.endless").touch()
    with pytest.raises(InputError, match=r"index\.json is larger than the 16,777,216 bytes"):
        FeatureStore(url)
    assert written(tmp_path) == {"store/.lock"}


def test_what_a_killed_run_left_half_fetched_is_taken_away(server: tuple[str, Path], tmp_path: Path) -> None:
    cache = cache_folder(server[0])
    cache.mkdir(parents=True)
    (cache / ".part-00000.h5.host.1.tmp").write_bytes(b"half")
    FeatureStore(server[0])
    assert written(tmp_path) == {"store/.lock", "store/index.json"}


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc", "local:///etc", "simplecache::http://{}", "zip://a::http://{}", "reference://x", "dir::http://{}",
        "github://a:b@c/d", "FILE:///etc", "http::http://{}", "filecache::file:///etc", "blockcache://x", "tar://x::y",
    ],
)  # fmt: skip
def test_addresses_of_other_kinds_are_not_opened(url: str, server: tuple[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="remote files have a URL of https"):
        FeatureStore(url.format(server[0].removeprefix("http://")))
    assert Handler.asked == [] and all(file.endswith(".lock") for file in written(tmp_path))


@pytest.mark.parametrize("last", ["..", ".", "a/..", "a%2f..", "..\\..\\x", "x" * 5000, "ü\n\x1b[31m", "", "-"])
def test_the_cache_folder_of_any_address_is_in_the_cache(
    last: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PREFIXCAP_CACHE", str(tmp_path))
    folder = cache_folder(f"https://host/{last}")
    folder.mkdir(parents=True)
    assert folder.resolve().parent.parent == tmp_path.resolve() / "stores"
    assert folder.name.isprintable()


def test_a_lock_that_is_a_link_empties_nothing(server: tuple[str, Path], tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("text")
    cache_folder(server[0]).mkdir(parents=True)
    (cache_folder(server[0]) / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match="is a link"):
        FeatureStore(server[0])
    assert (tmp_path / "precious").read_text() == "text"


# ---- named in a checkpoint -------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a user, with a store, and with the folder of a run; another store lies outside."""
    project = tmp_path / "project"
    write(project / "stores" / "own")
    write(tmp_path / "outside" / "store")
    (project / "runs" / "demo" / "today" / "checkpoints").mkdir(parents=True)
    monkeypatch.chdir(project)
    return project


RUN = "runs/demo/today/checkpoints/best.ckpt"


def opens(location: object, checkpoint: str = RUN) -> bool:
    """Whether the store is opened that a checkpoint names."""
    try:
        open_training_store({"store": str(location), "data": "demo"}, checkpoint)
    except InputError as error:
        assert "\n" not in str(error) and ("data.store=" in str(error) or "name the images" in str(error))
        return False
    return True


def test_the_store_of_a_run_is_opened(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = project / "stores" / "own"
    assert opens(own) and opens("stores/own")
    monkeypatch.chdir(tmp_path / "outside")  # from another folder
    assert opens(own, str(project / RUN))


def test_a_checkpoint_alone_opens_nothing(project: Path) -> None:
    assert not opens(project / "stores" / "own", "stranger.ckpt")
    assert not opens(project / "stores" / "own", "runs/demo/today/best.ckpt")


def test_a_store_elsewhere_is_not_opened(project: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside" / "store"
    assert FeatureStore(outside)
    (project / "stores" / "link").symlink_to(outside)
    (project / "loop").symlink_to(project / "loop")
    for location in (
        outside,
        "../outside/store",
        project / "stores/../../outside/store",
        "stores/link",
        "loop",
        "",
        "\0",
    ):
        assert not opens(location)
    with pytest.raises(InputError, match="does not say what it was trained on"):
        open_training_store({"store": 3}, RUN)


def test_a_store_elsewhere_is_opened_if_the_run_was_told_so(project: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside" / "store"
    config = project / "runs" / "demo" / "today" / "config.yaml"
    config.write_text(f"data:\n  store: {outside}\n")
    assert opens(outside)
    assert not opens(outside, "stranger.ckpt")
    for text in (
        "data:\n  store: /other\n",
        "data: 3\n",
        "{",
        "",
        "!!python/object/apply:os.system [ls]\n",
        "\0",
        "- " * 9,
    ):
        config.write_text(text)
        assert not opens(outside)


def test_a_folder_of_stores_on_another_disk(project: Path, tmp_path: Path) -> None:
    """`stores` is a link that the user has made."""
    (project / "stores").rename(tmp_path / "disk")
    (project / "stores").symlink_to(tmp_path / "disk")
    assert opens(FeatureStore("stores/own").location)


def test_a_whole_run_of_a_stranger_opens_no_url(project: Path, server: tuple[str, Path]) -> None:
    config = project / "runs" / "demo" / "today" / "config.yaml"
    config.write_text(f"data:\n  store: {server[0]}\n")
    for location in (server[0], f"simplecache::{server[0]}", "file:///etc", f"memory://{project}"):
        assert not opens(location)
    assert Handler.asked == []


def test_a_store_that_the_user_has_named_is_open(project: Path, server: tuple[str, Path]) -> None:
    given = FeatureStore(server[0])
    assert open_training_store({"store": server[0]}, "stranger.ckpt", given) is given


@pytest.mark.parametrize("name", ["stranger.ckpt", "runs/a/checkpoints/best.ckpt"])
def test_eval_asks_nobody(
    name: str, server: tuple[str, Path], tmp_path: Path, mistake: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command, with a checkpoint of which nothing is wrong but the URL of its store."""
    encoder = load_encoder("demo")
    checkpoint = tmp_path / name
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    captioner = Captioner(
        load_language_model("demo"), encoder.identity, {"name": "mlp", "prefix_length": 2},
        trained_on={"store": server[0], "data": "demo"},
    )  # fmt: skip
    weights = {f"captioner.{key}": weight for key, weight in captioner.checkpoint_state_dict().items()}
    torch.save({"prefixcap": captioner.describe(), "state_dict": weights}, checkpoint)
    printed = mistake("eval", f"ckpt={checkpoint}")
    assert f"{server[0]!r} as its store, a URL, which is opened only if you give it" in printed
    assert Handler.asked == []
    # Nor for the share of new captions, where the images are others.
    mine = make_store(tmp_path / "mine", encoder)
    monkeypatch.chdir(tmp_path)
    evaluate(
        monkeypatch, f"ckpt={checkpoint}", "data=coco", f"data.store={mine}", "metrics=diversity", "decode=greedy",
        "decode.max_tokens=3", "out=scores",
    )  # fmt: skip
    assert "Novel" not in json.loads((tmp_path / "scores" / "metrics.json").read_text())["diversity"]
    assert Handler.asked == []
