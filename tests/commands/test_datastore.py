"""`prefixcap datastore`: what is listed, added and removed, with an encoder that is there, and mistakes."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prefixcap.commands.verify import find_problems
from prefixcap.encoders import load_encoder
from prefixcap.features import EncoderIdentity, Feature
from prefixcap.prompts.datastore import Datastore
from prefixcap.store import FeatureStore, ImageRecord, StoreWriter, join
from tests.commands.conftest import Command

Mistaken = Callable[..., str]

TEXTS = ["a red circle", "a blue star", "A Red  Circle!", "a horse", "Horses in the snow"]


def make(path: Path, texts: list[str] = TEXTS, identity: EncoderIdentity | None = None) -> Path:
    encoder = load_encoder("demo")
    records = [ImageRecord(number, "", "train", (text,)) for number, text in enumerate(texts)]
    made = StoreWriter(path, identity or encoder.identity, "sentences", path.parent, "job", 1)
    rows = encoder.encode_texts(texts).numpy().astype(np.float16)
    made.write_piece(0, 0, 1, records, {str(Feature.CAPTION): rows}, [])
    join(path)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make(tmp_path / "store")


def captions(store: Path, split: str = "train") -> list[str]:
    """The captions of a store, which is intact, and has the encoder's embeddings of them."""
    assert list(find_problems(store)) == []
    opened = FeatureStore(store).split(split)
    texts: list[str] = opened.captions[:]
    expected = load_encoder("demo").encode_texts(texts).numpy()
    assert np.allclose(opened.feature(Feature.CAPTION)[:], expected, atol=2e-2, rtol=2e-3)
    return sorted(texts)


def type_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def test_list(store: Path, command: Command) -> None:
    status, out, _ = command("datastore", "list", store)
    lines = out.splitlines()
    assert status == 0 and lines[:3] == [f"datastore: {store}", "encoder: demo", "train: 5 captions, 4 different"]
    assert [line.strip() for line in lines[3:]] == TEXTS
    assert command("datastore", "list", store, "--count", 0).out.splitlines() == lines[:3]
    assert command("datastore", "list", store, "--match", "HORSE").out.splitlines() == TEXTS[3:]
    assert command("datastore", "list", store, "--match", "a", "--count", 2).out.splitlines() == TEXTS[:2]
    assert command("datastore", "list", store, "--match", "zebra").out == ""


def test_add_files_of_every_kind(
    store: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("a narwhal\n\na \u00fcbercat\n")
    (tmp_path / "b.jsonl").write_text('{"caption": "two owls"}\n"a green ring"\n')
    (tmp_path / "c.csv").write_text("caption\nan otter\n")
    sentences = [{"raw": "a lion"}], [{"raw": "a lion of the test images"}]
    images = [{"split": split, "sentences": own} for split, own in zip(("train", "test"), sentences, strict=True)]
    (tmp_path / "d.json").write_text(json.dumps({"images": images}))
    files = [tmp_path / name for name in ("a.txt", "b.jsonl", "c.csv", "d.json")]
    new = ["a narwhal", "a \u00fcbercat", "two owls", "a green ring", "an otter", "a lion"]
    done = command("datastore", "add", store, *files, "--dry-run")
    assert "would be added to split train: 6; left out: 2" in done.out and captions(store) == sorted(TEXTS)
    done = command("datastore", "add", store, *files)
    assert (done.status, "added to split train: 6\ncaptions now: train 11" in done.out) == (0, True)
    assert "a.txt: 1 blank line" in done.out and "left out: captions of split test" in done.out
    assert captions(store) == sorted(TEXTS + new)
    type_in(monkeypatch, "an auk\na long caption of six words\n")
    assert command("datastore", "add", store, "-", "--max-words", 3).status == 0
    assert captions(store) == sorted([*TEXTS, *new, "an auk"])
    assert {file.name for file in store.iterdir() if file.suffix != ".h5"} == {".lock", "index.json", "skipped.csv"}


def test_add_another_datastore_and_another_split(store: Path, tmp_path: Path, command: Command) -> None:
    other = make(tmp_path / "other", ["an owl", "an auk"])
    assert command("datastore", "add", store, other, "--split", "birds").status == 0
    assert FeatureStore(store).splits == {"train": 5, "birds": 2}
    assert captions(store) == sorted(TEXTS) and captions(store, "birds") == ["an auk", "an owl"]
    assert command("datastore", "copy", store, tmp_path / "birds", "--split", "birds").status == 0
    assert captions(tmp_path / "birds", "birds") == ["an auk", "an owl"]


def test_an_interrupted_addition_goes_on(
    store: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("".join(f"caption {number}\n" for number in range(2500)))
    encoder, embedded = load_encoder("demo"), list[str]()
    encode = type(encoder).encode_texts

    def counted(self: object, texts: list[str]) -> object:
        if len(embedded) >= 1500 and stops:
            raise KeyboardInterrupt
        embedded.extend(texts)
        return encode(self, texts)

    stops = True
    monkeypatch.setattr(type(encoder), "encode_texts", counted)
    assert command("datastore", "add", store, tmp_path / "a.txt").status == 130
    assert FeatureStore(store).captions == 5 and list(store.glob(".adding-*"))
    stops = False
    assert command("datastore", "add", store, tmp_path / "a.txt").status == 0
    assert len(embedded) < 4000  # a thousand were there already
    assert FeatureStore(store).captions == 2505 and not list(store.glob(".adding-*"))


def test_remove(store: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, err = command("datastore", "remove", store, "--match", "hORSe", "--dry-run")
    assert (status, out.splitlines()) == (0, TEXTS[3:]) and "would be removed: 2 of 5 captions" in err
    (tmp_path / "gone.txt").write_text("A red circle.\nnot there\n")
    assert "removed: 2 of 5" in command("datastore", "remove", store, "--captions", tmp_path / "gone.txt").out
    assert captions(store) == sorted(["a blue star", "a horse", "Horses in the snow"])
    type_in(monkeypatch, "a horse\n")
    assert command("datastore", "remove", store, "--captions", "-", "--match", "star").status == 0
    assert captions(store) == ["Horses in the snow"]
    assert "removed: 0 of 1" in command("datastore", "remove", store, "--match", "zebra").out


def test_dedupe(store: Path, command: Command) -> None:
    index = (store / "index.json").read_bytes()
    assert "would be removed: 1 of 5 captions" in command("datastore", "dedupe", store, "--dry-run").out
    assert (store / "index.json").read_bytes() == index
    assert "removed: 1 of 5 captions\ncaptions now: train 4" in command("datastore", "dedupe", store).out
    assert captions(store) == sorted([*TEXTS[:2], *TEXTS[3:]])
    index = (store / "index.json").read_bytes()
    assert "removed: 0 of 4" in command("datastore", "dedupe", store).out
    assert (store / "index.json").read_bytes() == index


def test_index(tmp_path: Path, command: Command, mistaken: Mistaken, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    store = make(tmp_path / "many", [f"caption {number}" for number in range(400)])
    done = command("datastore", "index", store, "--lists", 8, "--bytes", 16)
    assert (done.status, "captions: 400; lists: 8; bytes: 16; probes: 32" in done.out) == (0, True)
    file = store / "index-train.safetensors"
    arrays = file.read_bytes()[-400 * 16 :]
    done = command("datastore", "index", store, "--bytes", 16, "--probes", 5)  # which needs no new index
    assert "lists: 8; bytes: 16; probes: 5" in done.out and file.read_bytes()[-400 * 16 :] == arrays
    assert "index: index-train.safetensors" in command("datastore", "list", store).out
    assert Datastore.open(str(store)).index is not None
    assert "the index is of the captions before" in command("datastore", "remove", store, "--match", "caption 7").out
    with pytest.warns(UserWarning, match="of other captions"):
        assert Datastore.open(str(store)).index is None
    assert command("datastore", "index", store, "--lists", 4, "--bytes", 8).status == 0
    index = Datastore.open(str(store)).index
    assert index is not None and (index.about.lists, index.about.size) == (4, 8)
    for words, message in (
        ((make(tmp_path / "few"),), "needs at least 256 captions"),
        ((store, "--bytes", 3), "give a divisor of 128"),
        ((store, "--lists", 1000), "1000 lists for"),
        ((store, "--split", "val"), "has no split 'val'"),
        ((tmp_path / "none",), "there is no datastore"),
    ):
        assert message in mistaken("datastore", "index", *words)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert 'needs faiss: pip install "prefixcap[faiss]"' in mistaken("datastore", "index", store)


def test_mistakes(store: Path, tmp_path: Path, command: Command, mistaken: Mistaken) -> None:
    (tmp_path / "a.txt").write_text("a cat\n")
    (tmp_path / "empty.txt").write_text("\n")
    identity = load_encoder("demo").identity
    other = make(tmp_path / "other", ["a"], EncoderIdentity("demo", "cd" * 32, identity.preprocessing, identity.dim))
    gone = make(tmp_path / "gone", ["a"], EncoderIdentity("clip:gone.pt", "cd" * 32, "none", identity.dim))
    images = StoreWriter(tmp_path / "images", identity, "photographs", tmp_path, "job", 1)
    images.write_piece(
        0, 0, 1, [ImageRecord(0, "a.jpg", "train", ("a",))], {"images/embedding": np.ones((1, 128), np.float16)}, []
    )
    join(images.path)
    before = (store / "index.json").read_bytes()
    for words, message in (
        (("list", tmp_path / "none"), "there is no datastore"),
        (("list", tmp_path), "is not a feature store"),
        (("list", store, "--split", "test"), "has no split 'test'"),
        (("list", store, "--match", " "), "--match is empty"),
        (("add", tmp_path / "none", tmp_path / "a.txt"), "make it with `prefixcap embed data=text"),
        (("add", store, tmp_path / "none.txt"), "give text files, datastores, or -"),
        (("add", store, __file__), "must be a .txt"),
        (("add", other, tmp_path / "a.txt"), "but what has its name here is demo"),
        (("add", gone, tmp_path / "a.txt"), "name it as it is called here, --encoder"),
        (("add", gone, tmp_path / "a.txt", "--encoder", "demo"), "the encoder that is given is demo"),
        (("add", store, other), "embeddings of both cannot be compared"),
        (("add", images.path, tmp_path / "a.txt"), "has no embeddings of captions"),
        (("remove", store), "give --captions FILE or --match TEXT"),
        (("remove", store, "--captions", tmp_path / "empty.txt"), "there is no caption in"),
        (("remove", store, "--match", "a", "--captions", tmp_path / "none.txt"), "there is no file"),
        (("remove", images.path, "--match", "a"), "has no embeddings of captions"),
        (("dedupe", images.path), "has no embeddings of captions"),
        (("copy", images.path, tmp_path / "new"), "has no captions/embedding"),
        (("copy", store, other), "exists already"),
        (("sort", store), "no such command 'sort'"),
    ):
        told = mistaken("datastore", *words)
        assert message in told, told
    assert (store / "index.json").read_bytes() == before and not list(store.glob(".adding-*"))
    status, out, err = command("datastore", "add", store, tmp_path / "empty.txt")
    assert (status, out) == (2, "") and "none of the 0 sentences can be embedded" in err.splitlines()[-1]
    assert "nothing would be left" in mistaken("datastore", "remove", gone, "--match", "a")
    assert not (tmp_path / "none").exists() and not (tmp_path / "new").exists()


def test_every_sub_command_has_a_help_with_examples(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("list", "add", "remove", "dedupe", "index", "copy"):
        status, out, err = command("datastore", name, "--help")
        assert (status, err) == (0, "") and f" prefixcap datastore {name} " in out.split("\u256f")[-1]
        assert max(map(len, out.splitlines())) <= 80
