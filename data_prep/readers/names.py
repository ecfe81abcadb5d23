"""Finds the file of a folder that a name means: absolute, with backslashes, in another case or Unicode form."""

import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import cache, cached_property
from pathlib import Path, PurePosixPath

from data_prep.readers.inputs import is_storable, relative_file
from data_prep.readers.tables import Row
from prefixcap.errors import InputError
from prefixcap.utils.images import IMAGE_SUFFIXES

Form = Callable[[str], str]  # equal for names that may mean the same file


class FileNames:
    """The image files below a folder, found by the names that others may use for them.

    Args:
        root: the folder.

    Attributes:
        files: relative to it, sorted.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.files = root, _image_files(root)
        self._there = set(self.files)
        self._otherwise: dict[str, str] = {}  # names that differ from those of the files that they mean
        self._indexes: dict[Form, dict[str, list[str]]] = {}
        self._candidates = cache(self._possible)

    def find(self, rows: Iterable[tuple[tuple[Path, ...], Row]]) -> Iterator[str | None]:
        """The file of each row, relative to the root, whether it exists or not; None: the row has a problem.

        Args:
            rows: each with the folders that its name may be relative to, the likeliest first.

        Raises:
            InputError: a row has no name, or one that leaves the root.
        """
        meant = [None if row.problem else self._named(folders, row) for folders, row in rows]
        files = {names: file for names in meant if names for file in names if self._exists(file)}
        taken = set(files.values())
        for names in meant:
            if names and names not in files:
                similar = self._similar(names, taken)
                files[names] = similar or names[0]
                if similar:
                    taken.add(similar)
                    self._otherwise[names[0]] = similar
            yield files[names] if names else None

    def notes(self) -> list[str]:
        """A note for the user if names differ from those of the files."""
        if not self._otherwise:
            return []
        name, file = next(iter(self._otherwise.items()))
        count = len(self._otherwise)
        return [f"{count:,} names in the captions are not quite those of the images: {name} is taken for {file}"]

    def _named(self, folders: tuple[Path, ...], row: Row) -> tuple[str, ...]:
        name = row.image
        if not is_storable(name) or not name:
            raise InputError(f"{row.where}: 'image' must be a path, not {name!r}")
        if folders[0] == self.root and name in self._there:
            return (name,)
        names = self._candidates(folders, name)
        if not names:
            relative_file(self.root, name, row.where)
            raise InputError(f"{row.where}: the image {name!r} is not inside {self.root}")
        return names

    def _possible(self, folders: tuple[Path, ...], name: str) -> tuple[str, ...]:
        """The paths below the root that a name may mean, the likeliest first."""
        paths = [folder / form for form in (name, name.replace("\\", "/")) for folder in (*folders, Path())]
        return tuple(dict.fromkeys(inside for path in paths if (inside := self._inside(path))))

    def _inside(self, path: Path) -> str | None:
        """A path relative to the root, without "." and ".."; None: it is elsewhere, or the root itself."""
        absolute = os.path.abspath(path)  # noqa: PTH100  # links are the user's own, and not followed
        for root in self._roots:
            if absolute.startswith(root) and absolute != root:
                return Path(absolute[len(root) :]).as_posix()
        return None

    @cached_property
    def _roots(self) -> list[str]:
        """The root as it is given and with symbolic links resolved, with a slash at its end."""
        roots = (os.path.abspath(self.root), str(self.root.resolve()))  # noqa: PTH100
        return [root.rstrip("/") + "/" for root in roots]

    def _exists(self, file: str) -> bool:
        try:
            return file in self._there or (self.root / file).is_file()
        except OSError:  # it is too long for a name
            return False

    def _similar(self, names: tuple[str, ...], taken: set[str]) -> str | None:
        """The one file that differs from a name only in case or Unicode form, or in its suffix (unless another name
        means it), or that is in a folder below, where the name has no folder."""
        below = [name for name in names[:1] if "/" not in name]
        for tried, form, several in (
            (names, _folded, True), (names, _stem, False), (below, _last, True), (below, _last_stem, False),
        ):  # fmt: skip
            for name in tried:
                files = [file for file in self._by(form).get(form(name), []) if several or file not in taken]
                if len(files) == 1:
                    return files[0]
        return None

    def _by(self, form: Form) -> dict[str, list[str]]:
        """The files by the `form` of their names."""
        if form not in self._indexes:
            self._indexes[form] = {}
            for file in self.files:
                self._indexes[form].setdefault(form(file), []).append(file)
        return self._indexes[form]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def _stem(name: str) -> str:
    path = PurePosixPath(name)
    return _folded(str(path.with_suffix("")) if path.suffix.lower() in IMAGE_SUFFIXES else name)


def _last(name: str) -> str:
    return _folded(PurePosixPath(name).name)


def _last_stem(name: str) -> str:
    return _stem(PurePosixPath(name).name)


def _image_files(root: Path) -> list[str]:
    """The image files below `root`, relative to it, sorted. Links to folders are followed, each folder once."""
    files: list[str] = []
    seen = {root.resolve()}
    for folder, folders, names in os.walk(root, followlinks=True):
        targets = {name: (Path(folder) / name).resolve() for name in sorted(folders)}
        folders[:] = [name for name, target in targets.items() if target not in seen]
        seen |= {targets[name] for name in folders}
        images = (name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES)
        files += ((Path(folder) / name).relative_to(root).as_posix() for name in images)
    return sorted(files)
