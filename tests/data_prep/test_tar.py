"""Listing a tar, beside what Python's `tarfile` says of it."""

import io
import tarfile
from pathlib import Path

import pytest

from data_prep.readers.tar import list_tar
from data_prep.records import TarMember

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
LONG = "folder/" * 20 + "picture.jpg"


def write(path: Path, files: list[tuple[str, bytes]], form: str = "pax", mtime: float = 1.5) -> None:
    """A tar; with img2dataset's fractional times of change, each member of a pax tar has a header of its own."""
    with tarfile.open(path, "w", format=FORMATS[form]) as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), mtime
            tar.addfile(member, io.BytesIO(content))


def listed(path: Path) -> list[TarMember]:
    """What `tarfile` finds."""
    with tarfile.open(path, "r:") as tar:
        return [TarMember(path, member.name, member.offset_data, member.size) for member in tar if member.isreg()]


@pytest.mark.parametrize("form", FORMATS)
def test_as_tarfile_lists_it(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=FORMATS[form]) as tar:
        for number, name in enumerate(["a.jpg", "./b/c.jpg", LONG, "caf\u00e9.txt", "empty", "../up.jpg", "b" * 100]):
            member = tarfile.TarInfo(name)
            member.size = 0 if name == "empty" else 500 + number * 13
            tar.addfile(member, io.BytesIO(bytes([number]) * member.size))
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo("other")
            member.type, member.linkname, member.size = kind, LONG[:90], 700
            tar.addfile(member)
        tar.addfile(tarfile.TarInfo("last.jpg"))
    members, cut = list_tar(path)
    assert (members, cut) == (listed(path), False)
    assert [member.name for member in members][-2:] == ["b" * 100, "last.jpg"]
    assert members[2].read() == bytes([2]) * 526


def test_sizes_beyond_the_octal_digits(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for form in ("gnu", "pax"):
        member = tarfile.TarInfo("a.jpg")
        member.size = 9 * 2**30
        with path.open("wb") as file:
            file.write(member.tobuf(FORMATS[form]))
            file.seek(member.size, io.SEEK_CUR)  # a hole
            file.write(bytes(1024))
        assert list_tar(path) == (listed(path), False)


@pytest.mark.parametrize("form", FORMATS)
def test_cut_anywhere(tmp_path: Path, form: str) -> None:
    whole = tmp_path / "whole.tar"
    name = "a" * 30 if form == "ustar" else "a" * 130
    write(whole, [("1.jpg", b"x" * 700), (f"{name}.jpg", b"y" * 512), ("3.jpg", b""), ("4.jpg", b"z" * 5)], form)
    content, members = whole.read_bytes(), listed(whole)
    end = members[-1].offset + 512  # of the files; behind it, the blocks that end the archive
    path = tmp_path / "cut.tar"
    for length in (*range(512, end + 1024, 97), end, end + 511, end + 512):
        path.write_bytes(content[:length])
        found, cut = list_tar(path)
        expected = [TarMember(path, m.name, m.offset, m.size) for m in members if m.offset + m.size <= length]
        assert (found, cut) == (expected, length < end + 512), length


def test_damaged_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write(path, [("1.jpg", b"x" * 700), ("2.jpg", b"y"), ("3.jpg", b"z")], "gnu", mtime=1)
    members = listed(path)
    content = bytearray(path.read_bytes())
    content[members[1].offset - 400] ^= 1
    path.write_bytes(content)
    assert list_tar(path) == (members[:1], True)


@pytest.mark.parametrize("content", [b"", b"x", bytes(511), b"no tar at all" * 100, b"\xff" * 2048, b"\x1f\x8b" * 600])
def test_not_a_tar(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ValueError, match="not a tar"):
        list_tar(tmp_path / "a.tar")


def test_no_member(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", [])
    assert list_tar(tmp_path / "a.tar") == ([], False)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        tar.addfile(tarfile.TarInfo("caf\u00e9.jpg"))
    assert [member.name for member in list_tar(tmp_path / "a.tar")[0]] == ["caf\ufffd.jpg"]


@pytest.mark.parametrize(
    "pax", [b"nonsense", b"0 path=a\n", b"99999999999 path=a\n", b"12 size=abc\n", b"12 size=-99\n"]
)
def test_headers_made_to_mislead(tmp_path: Path, pax: bytes) -> None:
    header, member = tarfile.TarInfo("pax"), tarfile.TarInfo("a.jpg")
    header.type, header.size = tarfile.XHDTYPE, len(pax)
    content = header.tobuf(tarfile.USTAR_FORMAT) + pax.ljust(512, b"\0") + member.tobuf(tarfile.USTAR_FORMAT)
    (tmp_path / "a.tar").write_bytes(content + bytes(1024))
    members, cut = list_tar(tmp_path / "a.tar")  # ends, whatever it finds
    assert len(members) <= 1
    assert cut == (b"size" in pax)
