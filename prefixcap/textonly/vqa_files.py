"""Read questions and answers from VQAv2's JSON files.

Goyal et al., "Making the V in VQA Matter", CVPR 2017: a file of questions and one of annotations for each split.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefixcap.errors import InputError, listed
from prefixcap.utils.files import read_json


@dataclass(frozen=True)
class Question:
    """A question about an image, and its true answer."""

    id: int | str
    image_id: int | str
    text: str
    truth: str


def read_questions(questions: str | Path, annotations: str | Path) -> list[Question]:
    """Read the questions of a split and their answers, in the order of the questions file.

    Raises:
        InputError: a file is missing or has another format, a question is repeated, or one has no annotation.
    """
    asked = _entries(questions, "questions", {"question_id": int | str, "image_id": int | str, "question": str})
    known = _entries(annotations, "annotations", {"question_id": int | str, "multiple_choice_answer": str})
    if not asked:
        raise InputError(f"{questions} has no questions: give those of the validation set")
    truths = {entry["question_id"]: entry["multiple_choice_answer"] for entry in known}
    times = Counter(entry["question_id"] for entry in asked)
    if twice := [question_id for question_id, count in times.items() if count > 1]:
        raise InputError(f"{questions}: {listed('question', twice)} more than once: give each once")
    if unknown := [question_id for question_id in times if question_id not in truths]:
        raise InputError(
            f"{annotations} has no annotation of {len(unknown):,} of the {len(times):,} questions in {questions} "
            f"({listed('question', unknown)}): give the annotations of the same split"
        )
    return [
        Question(entry["question_id"], entry["image_id"], entry["question"], truths[entry["question_id"]])
        for entry in asked
    ]


def frequent_answers(annotations: str | Path, count: int | None = None) -> list[str]:
    """The answers of an annotations file of VQAv2, the most frequent first, equally frequent ones alphabetically.

    Args:
        annotations: of the training set.
        count: how many at most; None: all.

    Raises:
        InputError: the file is missing or has another format, or there are no answers.
    """
    if count is not None and count < 1:
        raise InputError(f"candidates must be at least 1, not {count}: the answer is chosen among them")
    frequencies = Counter(
        entry["multiple_choice_answer"]
        for entry in _entries(annotations, "annotations", {"multiple_choice_answer": str})
    )
    frequencies.pop("", None)
    if not frequencies:
        raise InputError(f"{annotations} has no answers to choose candidates from: give the training annotations")
    return sorted(frequencies, key=lambda answer: (-frequencies[answer], answer))[:count]


def sample(questions: Sequence[Question], count: int | None, seed: int) -> list[Question]:
    """A uniform sample of questions, in their order; all of them if count is None or there are no more.

    Raises:
        InputError: count is below 1.
    """
    if count is not None and count < 1:
        raise InputError(f"sample must be at least 1, or None (null) for all questions, not {count}")
    if count is None or count >= len(questions):
        return list(questions)
    chosen = np.random.default_rng(seed).choice(len(questions), count, replace=False)
    return [questions[row] for row in sorted(chosen.tolist())]


def about(images: Iterable[int | str], questions: Sequence[Question]) -> tuple[list[Question], str | None]:
    """The questions about these images, and a line that names the images of the other questions; None: there are none.

    Raises:
        InputError: no question is about any of the images.
    """
    available = dict.fromkeys(images)
    kept = [question for question in questions if question.image_id in available]
    missing = list(
        dict.fromkeys(repr(question.image_id) for question in questions if question.image_id not in available)
    )
    if not kept:
        have = listed("image", [repr(image) for image in available]) if available else "no image"
        raise InputError(
            f"no question is about an available image: the {len(questions):,} questions are about "
            f"{listed('image', missing)}, and there is {have}"
        )
    left_out = f"left out: {len(questions) - len(kept):,} of {len(questions):,} questions, without "
    return kept, left_out + listed("image", missing) if missing else None


def _entries(path: str | Path, name: str, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """The list called `name` in a file of VQAv2. Raises InputError unless each entry has the wanted keys and types."""
    content = read_json(Path(path))
    entries = content.get(name) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise InputError(f"{path} has no list of '{name}': give VQAv2's JSON file of {name}")
    for number, entry in enumerate(entries):
        for key, kind in wanted.items():
            if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
                raise InputError(f"{path}: entry {number} of '{name}' has no '{key}': give VQAv2's JSON file of {name}")
    return entries
