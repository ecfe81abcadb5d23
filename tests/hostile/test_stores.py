"""Feature stores that somebody else made, damaged or to harm: each reads as it was written, or ends in one line."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from prefixcap.commands import main
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity
from prefixcap.store import FeatureStore, ImageRecord, Skipped, StoreWriter, join

Change = Callable[[h5py.File], None]

ENCODER = EncoderIdentity("clip:small", "ab" * 32, "none", dim=4)
IMAGES = 6


def write(path: Path) -> Path:
    """One part with images of two splits, twelve captions, two kinds of features and a skipped image."""
    records = [
        ImageRecord(f"id {n}", f"{n}.jpg", "val" if n % 3 == 2 else "train", (f"ein Käfer {n}", f"a {n}"))
        for n in range(IMAGES)
    ]
    rows = np.random.default_rng(0).normal(size=(3 * IMAGES, 4)).astype(np.float16)
    features = {"images/embedding": rows[:IMAGES], "captions/embedding": rows[IMAGES:]}
    writer = StoreWriter(path, ENCODER, "photographs", path.parent, "job", 1)
    writer.write_piece(0, 0, 1, records, features, [Skipped("x", "x.jpg", "empty file")])
    join(path)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write(tmp_path / "store")


def plain_digest(part: Path) -> str:
    """What a store says of a part's content, by HDF5 alone."""
    digest = hashlib.sha256()
    with h5py.File(part) as file:
        for group in sorted(file):
            for name in sorted(file[group]):
                column = file[group][name]
                digest.update(f"{group}/{name} {column.shape} {column.dtype.kind}{column.dtype.itemsize}\n".encode())
                if column.dtype.kind == "O":
                    digest.update(json.dumps([text.decode() for text in column[()]]).encode())
                else:
                    digest.update(column[()].tobytes())
    return digest.hexdigest()


def rewrite(store: Path, change: Change, digest: bool = True, **options: Any) -> None:
    """Change the part, and let its index say so, as somebody would do who wants it to be read."""
    part = store / "part-00000.h5"
    with h5py.File(part) as before, h5py.File(store / "new", "w", **options) as file:
        for group in before:
            before.copy(group, file)
        file.attrs.update(before.attrs)
        change(file)
    (store / "new").replace(part)
    said = plain_digest(part) if digest else "0" * 64
    if digest:
        with h5py.File(part, "a") as file:
            file.attrs["digest"] = said
    index = json.loads((store / "index.json").read_text())
    index["parts"][0] |= {"bytes": part.stat().st_size, "digest": said}
    (store / "index.json").write_text(json.dumps(index))


def content(store: Path) -> list[Any]:
    """All that can be read of a store."""
    opened = FeatureStore(store)
    found: list[Any] = [opened.splits, opened.captions, opened.source, opened.skipped()]
    for name in opened.splits:
        split = opened.split(name)
        found += [split.ids, split.files, split.domains, split.captions[:], split.references()]
        found += [split.captions[i] for i in range(len(split.captions))]
        found += [split.caption_images[:].tolist(), split.captions_longer_than(0).tolist()]
        found += [split.feature(feature)[:].tobytes() for feature in split.features]
    return found


def is_refused(store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What reading a store says, in one line; `verify` finds something wrong, too."""
    with pytest.raises(InputError) as caught:
        content(store)
    status, printed = verified(store, capsys, monkeypatch)
    assert status == 1 and printed.startswith("error: ") and "Traceback" not in printed
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


def verified(store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["verify", str(store)])
    status = 0
    try:
        main("verify")
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    printed = capsys.readouterr()
    lines = [line for line in printed.err.replace("\r", "\n").split("\n") if line and not line.startswith("verifying")]
    return status, "\n".join(lines) or printed.out


def replaced(name: str, dtype: Any = None, convert: Callable[[Any], Any] = np.asarray, **options: Any) -> Change:
    """Write a column anew, in another type or another way."""

    def change(file: h5py.File) -> None:
        rows = convert(file[name][()])
        del file[name]
        if dtype is None:
            file.create_dataset(name, data=rows, **options)
        else:
            file.create_dataset(name, data=rows, dtype=dtype, **options)

    return change


def linked(name: str, link: Callable[[h5py.File], Any]) -> Change:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = link(file)

    return change


def virtual(file: h5py.File) -> None:
    rows = file["images/embedding"][()]
    with h5py.File("elsewhere.h5", "w") as other:
        other["rows"] = rows
    layout = h5py.VirtualLayout(rows.shape, rows.dtype)
    layout[:] = h5py.VirtualSource("elsewhere.h5", "rows", rows.shape)
    del file["images/embedding"]
    file.create_virtual_dataset("images/embedding", layout)


def outside(file: h5py.File) -> None:
    rows = file["images/embedding"][()]
    Path("elsewhere.bin").write_bytes(rows.tobytes())
    del file["images/embedding"]
    whole = [(str(Path("elsewhere.bin").resolve()), 0, rows.nbytes)]
    file.create_dataset("images/embedding", rows.shape, rows.dtype, external=whole)


def external_link(file: h5py.File) -> None:
    with h5py.File("elsewhere.h5", "w") as other:
        other["rows"] = file["images/embedding"][()]
    del file["images/embedding"]
    file["images/embedding"] = h5py.ExternalLink("elsewhere.h5", "/rows")


def group_instead(file: h5py.File) -> None:
    del file["images/embedding"]
    file.create_group("images/embedding/within")


def many_groups(file: h5py.File) -> None:
    for number in range(3000):
        file.create_group(f"g{number}")


def compact(file: h5py.File) -> None:
    rows = file["images/embedding"][()]
    del file["images/embedding"]
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple(rows.shape)
    made = h5py.h5d.create(file["images"].id, b"embedding", h5py.h5t.py_create(rows.dtype), space, dcpl=plan)
    h5py.Dataset(made)[...] = rows


def never_written(*shape: int) -> Change:
    def change(file: h5py.File) -> None:
        del file["images/embedding"]
        file.create_dataset("images/embedding", shape, np.float16)

    return change


def all_absurd(file: h5py.File) -> None:
    """Every column has 10**12 rows of which none was ever written."""
    for group in file.values():
        for name, column in list(group.items()):
            dtype, shape = column.dtype, (10**12, *column.shape[1:])
            del group[name]
            group.create_dataset(name, shape, dtype)


def narrow_float(file: h5py.File) -> None:
    """A float of two bytes with the exponent of bfloat16, which NumPy reads as one of four."""
    kind = h5py.h5t.IEEE_F16LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_ebias(127)
    del file["images/embedding"]
    h5py.h5d.create(file["images"].id, b"embedding", kind, h5py.h5s.create_simple((IMAGES, 4)))
    file["images/embedding"][...] = np.ones((IMAGES, 4), np.float32)


def same_letters(file: h5py.File) -> None:
    """Each file name is the same megabyte of letters."""
    file["images/file"][0] = "x" * 2**20
    place = file["images/file"].id.get_offset()
    file.flush()
    raw = Path(file.filename).read_bytes()[place : place + 16]
    del file["images/file"]
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    kind, space = h5py.h5t.py_create(h5py.string_dtype(), logical=True), h5py.h5s.create_simple((IMAGES,))
    made = h5py.h5d.create(file["images"].id, b"file", kind, space, dcpl=plan)
    place = made.get_offset()
    name = file.filename
    file.flush()
    file.close()
    with Path(name).open("rb+") as bytes_of_file:
        bytes_of_file.seek(place)
        bytes_of_file.write(raw * IMAGES)


INT8_CODES = h5py.enum_dtype({"train": 0, "val": 1}, np.uint8)
GAP_CODES = h5py.enum_dtype({"train": 0, "val": 5}, np.uint16)
PAIR = np.dtype([("a", "<f2", (4,))])

LAYOUTS: dict[str, tuple[Change, str]] = {
    "chunks": (replaced("images/embedding", chunks=(2, 4)), "in chunks"),
    "chunks of captions": (replaced("captions/text", chunks=(8,)), "in chunks"),
    "chunks of strings": (replaced("images/file", h5py.string_dtype(), list, chunks=(2,)), "in chunks"),
    "gzip": (replaced("images/embedding", compression="gzip"), "in chunks"),
    "gzip of pointers": (replaced("captions/text_end", compression="gzip"), "in chunks"),
    "shuffle, checksum": (replaced("captions/image", shuffle=True, fletcher32=True), "in chunks"),
    "resizable": (replaced("images/embedding", maxshape=(None, 4)), "in chunks"),
    "compact": (compact, "in chunks"),
    "external storage": (outside, "outside of the file"),
    "virtual": (virtual, "outside of the file"),
    "soft link": (linked("images/embedding", lambda _: h5py.SoftLink("/captions/embedding")), "a link in place"),
    "soft link of a group": (linked("skipped", lambda _: h5py.SoftLink("/images")), "a link in place"),
    "external link": (external_link, "a link in place"),
    "hard link": (linked("images/embedding", lambda file: file["captions/embedding"]), "12 rows of images/embedding"),
    "hard link of a group": (linked("skipped", lambda file: file["images"]), "skipped/domain as object"),
    "circle": (linked("skipped/id", lambda file: file["skipped"]), "a group of the name id"),
    "group": (group_instead, "a group of the name embedding"),
    "thousands of groups": (many_groups, "other groups"),
    "no group": (lambda file: file.__delitem__("skipped"), "other groups"),
    "no column": (lambda file: file.__delitem__("captions/text_end"), "lacks captions/text_end"),
    "a hundred columns": (
        lambda file: [file["images"].create_dataset(f"f{n}", data=np.ones(IMAGES, "f2")) for n in range(99)] and None,
        "columns of images",
    ),
    "never written": (never_written(IMAGES, 4), "does not hold the 6 rows"),
    "absurd": (never_written(10**12, 4), "does not hold the 1,000,000,000,000 rows"),
    "all absurd": (all_absurd, "does not hold the 1,000,000,000,000 rows"),
    "absurd width": (never_written(0, 2**60), "of shape"),
    "no width": (never_written(IMAGES, 0), "of shape"),
    "one axis": (replaced("images/embedding", convert=lambda rows: rows[:, 0]), "of shape"),
    "a scalar": (replaced("images/embedding", convert=lambda rows: rows[0, 0]), "of shape"),
    "nothing": (replaced("images/embedding", convert=lambda _: h5py.Empty("f2")), "of shape"),
    "other width": (replaced("images/embedding", convert=lambda rows: rows[:, :3].copy()), "are 4 wide"),
    "fewer rows": (replaced("images/embedding", convert=lambda rows: rows[:-1].copy()), "5 rows of images/embedding"),
    "big-endian": (replaced("images/embedding", ">f2"), "as >f2"),
    "double": (replaced("images/embedding", "<f8"), "as float64"),
    "integers": (replaced("images/embedding", "<i2"), "as int16"),
    "narrow float": (narrow_float, "as float32"),
    "compound": (replaced("images/embedding", PAIR, lambda rows: np.zeros(IMAGES, PAIR)), "images/embedding as"),
    "references": (
        replaced("images/embedding", h5py.ref_dtype, lambda rows: np.full(rows.shape, h5py.Reference(), object)),
        "images/embedding as",
    ),
    "big-endian pointers": (replaced("captions/image", ">i8"), "as >i8"),
    "short pointers": (replaced("captions/text_end", "<i4"), "as int32"),
    "strings of one length": (replaced("images/file", "S8", list), "images/file as"),
    "numbers for strings": (replaced("images/file", "<i8", lambda rows: np.arange(IMAGES)), "images/file as int64"),
    "ids as floats": (replaced("images/id", "<f8", lambda rows: np.arange(IMAGES)), "images/id as float64"),
    "codes of one byte": (replaced("images/split", INT8_CODES), "images/split as"),
    "codes with a gap": (replaced("images/split", GAP_CODES), "images/split as"),
    "no codes": (replaced("images/split", "<u2"), "images/split as uint16"),
    "one letter for all": (same_letters, "damaged strings in images/file"),
}


# What HDF5 alone cannot read whole.
NOT_HASHED = {
    "all absurd", "absurd", "absurd width", "one letter for all", "hard link of a group", "circle", "no group",
    "nothing", "group", "a scalar", "references",
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_not_laid_out_as_it_is_written(
    name: str, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(store.parent)
    change, message = LAYOUTS[name]
    rewrite(store, change, digest=name not in NOT_HASHED)
    assert message in is_refused(store, capsys, monkeypatch)


@pytest.mark.parametrize("options", [{"userblock_size": 512}, {"libver": "latest", "userblock_size": 1024}])
def test_a_block_in_front(
    options: dict[str, Any], store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(store, lambda file: None, **options)
    assert "another kind of HDF5 header" in is_refused(store, capsys, monkeypatch)


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (lambda file: None, {}),
        (lambda file: None, {"libver": "latest"}),
        (lambda file: file.__setitem__("images/kind", np.dtype("f2")) or file.__delitem__("images/kind"), {}),
        (replaced("images/embedding"), {"libver": "v110"}),
        (replaced("images/file", h5py.string_dtype(), list), {}),
    ],
)
def test_the_same_columns_written_by_another_program(
    change: Change, options: dict[str, Any], store: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    before = content(store)
    rewrite(store, change, **options)
    assert content(store) == before
    status, printed = verified(store, capsys, monkeypatch)
    assert status == 0, printed


def test_a_type_with_a_name_of_its_own(store: Path) -> None:
    def change(file: h5py.File) -> None:
        file["images/kind"] = np.dtype("<f2")
        rows, kind = file["images/embedding"][()], file["images/kind"]
        del file["images/embedding"]
        file.create_dataset("images/embedding", data=rows, dtype=kind)
        del file["images/kind"]

    before = content(store)
    rewrite(store, change)
    assert content(store) == before
