"""Reads Composite (Aditya et al. 2015) as it is published: what people on Mechanical Turk said of captions.

Three tables of captions of images of Flickr8k, Flickr30k and COCO, `8k_correctness.csv`, `30k_correctness.csv` and
`coco_correctness.csv`, and as many of how thorough captions are, `8k_throughness.csv` (their spelling). Columns are
separated by semicolons. Those that are read: `Input.image_url`, `Input.text1` to `Input.text3`, `Answer.Q1Answer` to
`Answer.Q3Answer`. The first caption of an image is one of its references.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import numpy as np

from prefixcap.errors import InputError
from prefixcap.evaluation.judgements import COMPOSITE, Judgements, checked
from prefixcap.metrics.metric import ImageId
from prefixcap.utils.files import read_text
from prefixcap.utils.image_ids import number_or_name

FILES = ("8k_correctness.csv", "30k_correctness.csv", "coco_correctness.csv")
_IMAGE = "Input.image_url"
_RATED = 3  # captions of an image


@dataclass(frozen=True)
class _Row:
    """An image, and its captions with their ratings; None: nobody rated it."""

    image: str
    captions: list[tuple[str, float | None]]


def composite_files(path: Path) -> list[Path]:
    """The three files of a folder, as far as they are there, or the file that `path` is; none if it is neither."""
    if path.is_dir():
        return [path / name for name in FILES if (path / name).is_file()]
    return [path] if path.suffix.lower() == ".csv" else []


def read_composite(path: str | Path, captions: Mapping[ImageId, Sequence[str]]) -> Judgements:
    """Read the ratings, 1 to 5, of the first three captions of each image.

    The rating of a fourth caption, which Flickr30k's and COCO's images have, is not read, as in other work: 11,985
    ratings of 3,995 images. As in Hessel et al. (2021), the reference that is rated as the first caption of an image is
    none of its references.

    Args:
        path: the folder of the three files of correctness, which are read as one data set; or one of these, or of those
            of thoroughness.
        captions: of the images, by file name or by COCO's number.

    Raises:
        InputError: there is no such file, its form is another, an image has no captions, or is left without references.

    Examples:
        >>> file = Path("8k_correctness.csv")
        >>> head = "Input.image_url;Input.text1;Input.text2;Answer.Q1Answer;Answer.Q2Answer"
        >>> _ = file.write_text(f"{head}\\nhttp://x.org/a.jpg;A dog runs .;a cat;5;1\\n")
        >>> judged = read_composite(file, {"a.jpg": ["A dog runs.", "a wet dog"]})
        >>> judged.captions, judged.ratings.tolist(), judged.references
        (['A dog runs .', 'a cat'], [[5.0], [1.0]], {'a.jpg': ['a wet dog']})
    """
    path = Path(path)
    files = composite_files(path)
    if not files:
        raise InputError(f"{path} holds none of Composite's files ({', '.join(FILES)}): name their folder, or one")
    known = {number_or_name(image): texts for image, texts in captions.items()}
    images: list[str] = []
    texts: list[str] = []
    ratings: list[float] = []
    references: dict[str, list[str]] = {}
    unrated = removed = 0
    for file in files:
        for row in _read_rows(file):
            if row.image not in references:
                own = list(known.get(number_or_name(row.image), ()))
                if not own:
                    raise InputError(f"{file}: there are no captions of the image {row.image!r}; give those, too")
                alike = [place for place, text in enumerate(own) if _letters(text) == _letters(row.captions[0][0])]
                for place in alike[:1]:
                    del own[place]
                    removed += 1
                references[row.image] = own
            for text, rating in row.captions:
                if rating is None:
                    unrated += 1
                    continue
                images.append(row.image)
                texts.append(text)
                ratings.append(rating)
    notes = [f"first captions that are references of their image, and so are none: of {removed:,} images"]
    if path.is_dir() and len(files) < len(FILES):
        notes.append(
            f"a part of Composite: there is no {', no '.join(name for name in FILES if path / name not in files)}"
        )
    notes += [f"captions without a rating are left out: {unrated:,}"] if unrated else []
    name = COMPOSITE if path.is_dir() else f"{COMPOSITE} {path.stem}"
    kept = {image: references[image] for image in images}
    return checked(Judgements(name, images, texts, np.array(ratings).reshape(-1, 1), kept, notes), path)


def _read_rows(file: Path) -> Iterator[_Row]:
    """The rows that have an image; the last ones have none."""
    table = csv.DictReader(io.StringIO(read_text(file), newline=""), delimiter=";")
    try:
        columns = [column for n in (1, 2) for column in (f"Input.text{n}", f"Answer.Q{n}Answer")]
        if missing := [column for column in (_IMAGE, *columns) if column not in (table.fieldnames or ())]:
            raise InputError(f"{file} lacks the column {missing[0]!r}, between semicolons: is it one of Composite's?")
        for cells in table:
            url = (cells[_IMAGE] or "").strip()
            if not url:
                continue
            where = f"{file}, line {table.line_num}"
            captions = [
                (" ".join(text.split()), _rating(where, n, cells.get(f"Answer.Q{n}Answer")))
                for n in range(1, _RATED + 1)
                if (text := cells.get(f"Input.text{n}") or "").strip()
            ]
            if not captions:
                raise InputError(f"{where}: the image {url!r:.80} has no caption")
            yield _Row(PurePosixPath(urlsplit(url).path).name, captions)
    except csv.Error as error:
        raise InputError(f"{file}, line {table.line_num} is no line of a table: {error}") from error


def _rating(where: str, number: int, cell: str | None) -> float | None:
    if cell is None or not cell.strip():
        return None
    try:
        rating = float(cell)
    except ValueError:
        rating = 0
    if not 1 <= rating <= 5:
        raise InputError(f"{where}: the rating of caption {number} is {cell!r:.40}, not 1 to 5")
    return rating


def _letters(text: str) -> str:
    """A caption without what a tokenizer changes."""
    return "".join(filter(str.isalnum, text.lower()))
