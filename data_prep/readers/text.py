"""Sentences without images: lines of text, tables, JSON."""

import hashlib
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.readers.inputs import (
    check_shares,
    clean_caption,
    draw_split,
    draw_splits,
    object_list,
    split_name,
    split_of,
    value_of,
)
from data_prep.readers.tables import read_rows
from data_prep.records import Dataset, FileShard, ImageRecord, Sample, Shard, Skipped
from prefixcap.errors import InputError
from prefixcap.utils.files import parse_json, read_json

SHARD_LINES = 10_000
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
IN_LINES = (".txt", ".tsv", ".jsonl")
NOT_IN_LINES = (".csv", ".json")

Sentence = tuple[int, object, str | None]  # number, text (not checked yet), split if the file says it


def read_text(
    files: str | Path | Sequence[str | Path],
    split: str = "train",
    val_share: float = 0.0,
    max_words: int | None = None,
) -> Dataset:
    """Read sentences without images.

    Args:
        files: a path or a pattern ("corpus/*.txt"), or several. `.txt`: a sentence a line. `.tsv`: the column
            `caption`, or the first column if no header names it, as in Conceptual Captions' own file.
            `.csv`: the column `caption`. `.json`: a list of strings or of objects with `caption` or `captions`, or
            COCO's annotations, or one of Karpathy's files, whose splits are kept. `.jsonl`: a line is a string or
            such an object.
        split: of the sentences.
        val_share: share of the sentences, 0.0 to 1.0, that goes to "val" instead. Equal sentences are kept together.
        max_words: leave out longer sentences; None: keep all.

    Returns:
        A record for each sentence, without a file. Its id is its number among all sentences of all files; in `.txt`,
        `.tsv` and `.jsonl`, which are not held in memory, a line without a sentence has a number, too.

    Raises:
        InputError: a file is missing or cannot be read, has another form or lacks a caption; no file has a sentence.
            The message names the file.

    Examples:
        >>> path = Path("sentences.txt")
        >>> _ = path.write_text("A red star.\\nA blue circle.\\n")
        >>> samples, skipped = read_text(path).shards[0].read()
        >>> [(sample.record.id, *sample.record.captions) for sample in samples]
        [(0, 'A red star.'), (1, 'A blue circle.')]
    """
    check_shares(val_share, 0.0)
    rules = SentenceRules(split_name(split), val_share, max_words)
    patterns = [files] if isinstance(files, str | Path) else list(files)
    paths = list(dict.fromkeys(path for pattern in patterns for path in _matching(Path(pattern))))
    shards: list[Shard] = []
    skipped: list[Skipped] = []
    number = 0
    for path in paths:
        if path.suffix.lower() in NOT_IN_LINES:
            sentences = [(number + place, *sentence) for place, sentence in enumerate(_sentences(path))]
            records, left_out = replace(rules, complete=len(paths) == 1).apply(path.name, sentences)
            starts = range(0, len(records), SHARD_LINES)
            shards += [FileShard(records[start : start + SHARD_LINES], path.parent) for start in starts]
            skipped += left_out
            number += len(sentences)
        else:
            for shard in _line_shards(path, number, rules):
                shards.append(shard)
                number += shard.size
    if len(shards) == 1 and isinstance(shards[0], LineShard):
        shards = [replace(shards[0], rules=replace(rules, complete=True))]
    where = ", ".join(map(str, patterns))
    if not shards:
        raise InputError(f"no sentence in {where or 'no file'}: give a path, a pattern or a list of them")
    return Dataset(shards, skipped, paths[0].parent, f"sentences of {where}", has_images=False)


@dataclass(frozen=True)
class SentenceRules:
    """How sentences are filtered and split; options as in `read_text`.

    Attributes:
        complete: no other sentences follow, so at least one must go to "val" if that has a share.

    Raises:
        InputError: `max_words` is no such number.
    """

    split: str
    val_share: float
    max_words: int | None
    complete: bool = False

    def __post_init__(self) -> None:
        if self.max_words is not None and (not isinstance(self.max_words, int) or self.max_words < 1):
            raise InputError(f"max_words must be an integer of at least 1, or null, not {self.max_words!r}")

    def apply(self, file: str, sentences: Iterable[Sentence]) -> tuple[list[ImageRecord], list[Skipped]]:
        """The records of sentences of a file, and what is left out."""
        records: list[ImageRecord] = []
        skipped: list[Skipped] = []
        long = 0
        for number, text, split in sentences:
            try:
                sentence = clean_caption(text)
            except ValueError as error:
                skipped.append(Skipped(number, file, str(error)))
                continue
            if self.max_words is not None and len(sentence.split()) > self.max_words:
                long += 1
                continue
            records.append(ImageRecord(number, "", split or "", (sentence,)))
        drawn = self._drawn([record.captions[0] for record in records if not record.split])
        records = [record if record.split else replace(record, split=drawn[record.captions[0]]) for record in records]
        if long:  # one entry for all: they may be millions
            skipped.append(Skipped("", file, f"{long} sentences of more than {self.max_words} words"))
        return records, skipped

    def _drawn(self, sentences: list[str]) -> dict[str, str]:
        """The splits of sentences whose file does not give one."""
        if not self.val_share:
            return dict.fromkeys(sentences, self.split)
        if self.complete:
            drawn = draw_splits(sentences, self.val_share, 0.0, seed=0)
        else:
            drawn = {sentence: draw_split(sentence, self.val_share, 0.0, seed=0) for sentence in sentences}
        return {sentence: "val" if split == "val" else self.split for sentence, split in drawn.items()}


@dataclass(frozen=True)
class LineShard:
    """Consecutive lines of a file, which are read only when needed.

    Attributes:
        file: `.txt`, `.tsv` or `.jsonl`.
        start: the first byte of the first line.
        length: bytes of all lines.
        digest: SHA-256 of the lines.
        first: the number of the first sentence.
        size: how many numbers the lines take: one each, or as many as a line has sentences.
        column: of the caption in a line of `.tsv`.
        rules: for its sentences.
    """

    file: Path
    start: int
    length: int
    digest: str
    first: int
    size: int
    column: int
    rules: SentenceRules

    def fingerprint(self) -> str:
        rules = (self.rules.split, self.rules.val_share, self.rules.max_words)
        values = [self.file.name, self.digest, self.first, self.column, *rules]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()

    def read(self) -> tuple[list[Sample], list[Skipped]]:
        """Its sentences and what is left out. Raises InputError if the file cannot be read or has changed."""
        try:
            with self.file.open("rb") as file:
                file.seek(self.start)
                lines = file.read(self.length)
        except OSError as error:
            raise InputError(f"cannot read {self.file}: {error.strerror}; run the same command again") from error
        if hashlib.sha256(lines).hexdigest() != self.digest:
            raise InputError(f"{self.file} has changed since this run began: run the same command again")
        sentences: list[Sentence] = []
        skipped: list[Skipped] = []
        number = self.first
        blank = 0
        for line in io.BytesIO(lines):
            try:
                texts = _texts_of_line(line, self.file.suffix.lower(), self.column)
            except ValueError as error:
                texts = []
                skipped.append(Skipped(number, self.file.name, str(error)))
            sentences += [(number + place, text, None) for place, text in enumerate(texts)]
            number += max(1, len(texts))
            blank += not line.strip()
        records, left_out = self.rules.apply(self.file.name, sentences)
        if blank:
            left_out.append(Skipped("", self.file.name, f"{blank} blank line{'s' if blank > 1 else ''}"))
        return [Sample(record, None) for record in records], [*skipped, *left_out]


def _matching(pattern: Path) -> list[Path]:
    """The file of that name, or the files that match a pattern, sorted."""
    inside = pattern.relative_to(pattern.anchor)
    paths = [pattern] if pattern.is_file() or not inside.name else sorted(Path(pattern.anchor).glob(str(inside)))
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise InputError(f"there is no file {pattern}: give a path, a pattern or a list of them")
    for path in paths:
        if path.suffix.lower() not in (*IN_LINES, *NOT_IN_LINES):
            raise InputError(f"{path} must be a {', '.join(IN_LINES)}, {' or '.join(NOT_IN_LINES)} file")
    return paths


def _line_shards(path: Path, first: int, rules: SentenceRules) -> Iterator[LineShard]:
    """The shards of a file. Its lines are read once, for the hashes, and not kept."""
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as file:
            start = len(BYTE_ORDER_MARK) if file.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK else 0
            file.seek(start)
            head = file.readline()
            column = 0
            if suffix == ".tsv" and b"caption" in (cells := [cell.strip() for cell in head.split(b"\t")]):
                column = cells.index(b"caption")
                start += len(head)
            elif suffix == ".jsonl":
                _texts_of_line(head, suffix, column)
            file.seek(start)
            while lines := list(itertools.islice(file, SHARD_LINES)):
                joined = b"".join(lines)
                size = len(lines)
                if suffix == ".jsonl" and b"[" in joined:  # else no line can have a list of captions
                    size = sum(_numbers_of_line(line) for line in lines)
                digest = hashlib.sha256(joined).hexdigest()
                yield LineShard(path, start, len(joined), digest, first, size, column, rules)
                start += len(joined)
                first += size
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}, line 1: {error}") from error


def _numbers_of_line(line: bytes) -> int:
    try:
        return max(1, len(_texts_of_line(line, ".jsonl", 0)))
    except ValueError:
        return 1


def _texts_of_line(line: bytes, suffix: str, column: int) -> list[object]:
    """The captions of a line, not checked yet; none for a blank line. Raises ValueError if it has another form."""
    if not line.strip():
        return []
    if suffix == ".txt":
        return [line]
    if suffix == ".tsv":
        cells = line.split(b"\t")
        if len(cells) <= column:
            raise ValueError("line without caption")
        return [cells[column]]
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise ValueError("caption is not valid UTF-8") from None
    try:
        return _texts_of_entry(parse_json(text, "line"))
    except InputError as error:
        raise ValueError(str(error).removeprefix("line is ")) from error


def _texts_of_entry(entry: object) -> list[object]:
    """The captions of an entry of a JSON list, not checked yet. Raises ValueError if it has another form."""
    if isinstance(entry, str):
        return [entry]
    if isinstance(entry, dict) and ("captions" in entry or "caption" in entry):
        captions = entry["captions" if "captions" in entry else "caption"]
        return captions if isinstance(captions, list) else [captions]
    raise ValueError("neither a string nor an object with 'caption' or 'captions'")


def _sentences(path: Path) -> Iterator[tuple[object, str | None]]:
    """The sentences of a file that is read at once, not checked yet, each with its split if the file gives one."""
    if path.suffix.lower() == ".csv":
        for row in read_rows(path, with_image=False):
            yield from ((caption, None) for caption in row.captions)
        return
    content = read_json(path)
    if isinstance(content, list):
        for place, entry in enumerate(content):
            try:
                texts = _texts_of_entry(entry)
            except ValueError as error:
                raise InputError(f"{path}: entry {place} is {error}") from error
            for text in texts:
                yield text, None
    elif isinstance(content, dict) and "annotations" in content:
        for annotation in object_list(path, content, "annotations"):
            yield value_of(path, annotation, "caption"), None
    else:
        for image in object_list(path, content, "images"):
            split = split_of(path, image)
            for sentence in object_list(path, image, "sentences"):
                yield value_of(path, sentence, "raw"), split
