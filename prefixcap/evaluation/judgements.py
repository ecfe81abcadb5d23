"""Reads what people said of captions, from the files of the data sets that metrics are judged by.

Flickr8k-Expert and Flickr8k-CF (Hodosh et al. 2013) as published, and as the JSON files that the code of CLIPScore
(Hessel et al. 2021) and PAC-S (Sarto et al. 2023) makes of them, in which Composite (Aditya et al. 2015) goes round,
too. `prefixcap.evaluation.composite` reads Composite as published, `prefixcap.evaluation.pascal50s` Pascal-50S.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from prefixcap.errors import InputError
from prefixcap.metrics.metric import Statistics
from prefixcap.utils.files import read_json, read_text

CaptionLists: TypeAlias = Mapping[str, Sequence[str]]
"""The captions of each image by its file name, in the order in which caption ids `file#number` count them."""

EXPERT, CROWD, COMPOSITE = "Flickr8k-Expert", "Flickr8k-CF", "Composite"
_NAMES = {"flickr8k": EXPERT, "crowdflower_flickr8k": CROWD, "composite": COMPOSITE}  # files of CLIPScore's code
_CAPTION_ID = re.compile(r"(.+)#(\d{1,9})")


@dataclass(frozen=True)
class Judgements:
    """Captions of images, and what people said of each.

    Attributes:
        name: of the data set.
        images: (n,) the image of each caption.
        captions: (n,) as they were written.
        ratings: (n, r) by r people, or one number for all of them; more is better.
        references: of each image.
        notes: what was left out, one line each.
    """

    name: str
    images: Sequence[str]
    captions: Sequence[str]
    ratings: Statistics
    references: CaptionLists
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class _Row:
    """A line of one of Flickr8k's files."""

    where: str
    image: str
    caption_id: str
    figures: tuple[float, ...]


def read_judgements(path: str | Path, captions: CaptionLists | None = None) -> Judgements:
    """Read judgements of captions from a file.

    - `.json`: as CLIPScore's code writes it, an object with an entry for each image, which has `ground_truth`, a list
      of references, and `human_judgement`, a list of objects with `caption` and `rating`.
    - Flickr8k's `ExpertAnnotations.txt`, whatever it is called: image, caption id, three scores from 1 to 4. A caption
      that is one of the image's own captions is left out, as in Anderson et al. (2016) and after.
    - Flickr8k's `CrowdFlowerAnnotations.txt`: image, caption id, share, number of yes, number of no; the share is the
      judgement. Captions of the image itself are judged, too: these are not among its references, for any caption of
      the image, as in Hessel et al. (2021).

    Args:
        path: of the file.
        captions: of Flickr8k's images, for its two files.

    Raises:
        InputError: there is no such file, its form is another, it judges captions that `captions` lacks, or an image
            is left without references.

    Examples:
        >>> file = Path("judged.txt")
        >>> _ = file.write_text("a.jpg\\tb.jpg#1\\t1\\t1\\t2\\na.jpg\\tb.jpg#0\\t3\\t4\\t4\\n")
        >>> judged = read_judgements(file, {"a.jpg": ["A dog runs."], "b.jpg": ["A wet dog", "A cat"]})
        >>> judged.captions, judged.ratings.tolist(), judged.references
        (['A cat', 'A wet dog'], [[1.0, 1.0, 2.0], [3.0, 4.0, 4.0]], {'a.jpg': ['A dog runs.']})
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        return checked(_read_json(path), path)
    rows = list(_read_rows(path))
    if not rows:
        raise InputError(f"{path} judges no caption; is it the right file?")
    if captions is None:
        raise InputError(f"{path} names captions of Flickr8k by their numbers: give these captions, too")
    for reader in (_expert, _crowd):
        if (judged := reader(rows, captions)) is not None:
            return checked(judged, path)
    odd = next(row for row in rows if not (_is_crowd if _is_crowd(rows[0]) else _is_expert)(row))
    raise InputError(
        f"{odd.where} holds neither three scores from 1 to 4 (ExpertAnnotations.txt) nor a share, and the numbers of "
        "yes and no that make it (CrowdFlowerAnnotations.txt), or not as the first line does"
    )


def _read_rows(path: Path) -> Iterator[_Row]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where, columns = f"{path}, line {number}", line.rstrip("\r").split("\t")
        if len(columns) != 5:
            raise InputError(
                f"{where} has {len(columns)} columns between tabs: give an image, a caption id and three numbers, as "
                "Flickr8k's files of judgements do"
            )
        image, caption_id, *figures = columns
        try:
            yield _Row(where, image, caption_id, tuple(map(float, figures)))
        except ValueError:
            raise InputError(f"{where}: {' '.join(figures)!r:.40} are not three numbers") from None


def _is_expert(row: _Row) -> bool:
    return all(figure in (1, 2, 3, 4) for figure in row.figures)


def _is_crowd(row: _Row) -> bool:
    share, yes, no = row.figures
    return all(count >= 0 and count.is_integer() for count in (yes, no)) and abs(share * (yes + no) - yes) < 1e-4 < (
        yes + no
    )


def _expert(rows: Sequence[_Row], captions: CaptionLists) -> Judgements | None:
    """Judgements by experts; None: these are none."""
    if not all(map(_is_expert, rows)):
        return None
    texts = [_caption(row, captions) for row in rows]
    judged = [number for number, row in enumerate(rows) if texts[number] not in _own(row, captions)]
    images = [rows[number].image for number in judged]
    notes = []
    if left_out := len(rows) - len(judged):
        notes = [f"captions that are among the references of their image are left out: {left_out:,}"]
    ratings = np.array([rows[number].figures for number in judged])
    references = {image: list(captions[image]) for image in images}
    return Judgements(EXPERT, images, [texts[number] for number in judged], ratings, references, notes)


def _crowd(rows: Sequence[_Row], captions: CaptionLists) -> Judgements | None:
    """Judgements by a crowd; None: these are none."""
    if not all(map(_is_crowd, rows)):
        return None
    references: dict[str, list[str]] = {}
    texts, taken = [], 0
    for row in rows:
        text = _caption(row, captions)
        own = references.setdefault(row.image, list(_own(row, captions)))
        if text in own:
            own.remove(text)
            taken += 1
        texts.append(text)
    notes = []
    if taken:
        notes = [f"captions of the image itself that are judged, and so are none of its references: {taken:,}"]
    shares = np.array([row.figures[:1] for row in rows])
    return Judgements(CROWD, [row.image for row in rows], texts, shares, references, notes)


def _own(row: _Row, captions: CaptionLists) -> Sequence[str]:
    if row.image not in captions:
        raise InputError(f"{row.where}: there are no captions of the image {row.image!r}; is it the right data set?")
    return captions[row.image]


def _caption(row: _Row, captions: CaptionLists) -> str:
    named = _CAPTION_ID.fullmatch(row.caption_id)
    if named is None:
        raise InputError(f"{row.where}: {row.caption_id!r:.60} is no caption id: give an image and a number, x.jpg#0")
    of_image, number = captions.get(named[1], ()), int(named[2])
    if number >= len(of_image):
        raise InputError(f"{row.where}: there is no caption {row.caption_id!r}; is it the right data set?")
    return of_image[number]


def _read_json(path: Path) -> Judgements:
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} is not an object with an entry for each image, as CLIPScore's code writes it")
    images, captions, ratings = [], [], []
    references: dict[str, list[str]] = {}
    unrated = 0
    for image, entry in content.items():
        where = f"{path}: image {image!r}"
        entry = entry if isinstance(entry, dict) else {}
        judged: list[dict[str, Any]] = _list_of(where, entry, "human_judgement", dict)
        texts: list[str] = _list_of(where, entry, "ground_truth", str)
        for number, judgement in enumerate(judged):
            caption, rating = judgement.get("caption"), judgement.get("rating")
            if not isinstance(caption, str) or isinstance(rating, bool) or not isinstance(rating, int | float):
                raise InputError(f"{where}: judgement {number} lacks 'caption', a text, or 'rating', a number")
            if isinstance(rating, int) and abs(rating) >= 2**53:
                raise InputError(f"{where}: judgement {number} has a rating of {len(str(abs(rating)))} digits")
            if math.isnan(rating):
                unrated += 1
                continue
            images.append(image)
            captions.append(_folded(caption))
            ratings.append([float(rating)])
            references.setdefault(image, [_folded(text) for text in texts])
    notes = [f"captions without a rating are left out: {unrated:,}"] if unrated else []
    name = _NAMES.get(path.stem, path.stem)
    return Judgements(name, images, captions, np.array(ratings).reshape(-1, 1), references, notes)


def _list_of(where: str, entry: dict[str, Any], name: str, kind: type) -> list[Any]:
    value = entry.get(name)
    if not isinstance(value, list) or not all(isinstance(each, kind) for each in value):
        what = "texts" if kind is str else "objects"
        raise InputError(f"{where} lacks {name!r}, a list of {what}, which CLIPScore's code gives each image")
    return value


def _folded(text: str) -> str:
    """With single spaces; half a surrogate pair becomes U+FFFD, as in other files of captions."""
    return " ".join(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").split())


def checked(judged: Judgements, path: Path) -> Judgements:
    """Judgements that can be compared with scores."""
    if len(np.unique(judged.ratings)) < 2:
        raise InputError(f"{path}: nothing can agree with {judged.ratings.size:,} judgements that are all the same")
    if not np.isfinite(judged.ratings).all():
        raise InputError(f"{path}: a rating is infinite")
    if bare := [image for image, texts in judged.references.items() if not texts]:
        raise InputError(
            f"{path}: image {bare[0]!r} has no reference but the captions that are judged ({len(bare)} in all): leave "
            "it out"
        )
    return judged
