"""The Visual Relations benchmark: A is to B as C is to what? (Tewel et al., "ZeroCap", CVPR 2022, section 5.2, Table 2)

A captioner captions C + B - A, and the caption should contain the answer, a single word. Relations are JSON:

    [{"relation": "food to country", "pair": ["img:sushi.jpg", "img:japan.jpg"], "given": "img:pizza.jpg",
      "answer": "Italy"}, ...]

with A and B as the pair and C as given. Each is an operand of `prefixcap.zeroshot.arithmetic`: an image, a text or a
stored embedding; paths are relative to the file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from tqdm import tqdm

from prefixcap.captioner import Captioner
from prefixcap.encoders import Encoder
from prefixcap.errors import InputError
from prefixcap.metrics import score_parts
from prefixcap.metrics.ptb import tokenize
from prefixcap.store.remote import is_remote
from prefixcap.utils.files import Journal, read_json
from prefixcap.utils.options import Positive, check_value
from prefixcap.zeroshot.arithmetic import embed_expressions, encoder_of, parse

if TYPE_CHECKING:
    from prefixcap.zeroshot.magic import Magic
    from prefixcap.zeroshot.zerocap import ZeroCap

FIRST = 5  # words of a caption, in which the answer is looked for
OVERALL = "overall"


@dataclass(frozen=True)
class Relation:
    """A is to B as C is to the answer.

    Attributes:
        name: of the kind of relation; relations with the same name are scored together.
        a, b, c: operands.
        answer: a word.
    """

    name: str
    a: str
    b: str
    c: str
    answer: str

    @property
    def expression(self) -> str:
        """The expression that a captioner captions."""
        return f"{self.c} + {self.b} - {self.a}"


def read_relations(path: str | Path) -> list[Relation]:
    """Read a file of relations, see the top of this module for its format.

    Raises:
        InputError: there is no such file, it has another format, or no relations.
    """
    entries = read_json(Path(path))
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path} is not a list of relations: give a JSON file of [{{'relation': …}}, …]")
    return [_relation(entry, f"{path}: entry {number}") for number, entry in enumerate(entries)]


def _relation(entry: Any, where: str) -> Relation:
    match entry:
        case {"relation": str(name), "pair": [str(a), str(b)], "given": str(c), "answer": str(answer)}:
            pass
        case _:
            raise InputError(
                f"{where} must be an object with 'relation', 'pair' (two operands), 'given' (an operand) and 'answer'"
            )
    if not name or name == OVERALL:
        raise InputError(f"{where}: a relation cannot have the name '{name}': give it another")
    if not tokenize(answer):
        raise InputError(f"{where}: the answer '{answer}' has no word: give one")
    for operand in (a, b, c):
        try:
            terms = parse(operand)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        if len(terms) != 1:
            raise InputError(f"{where}: '{operand}' is more than one operand: give one image, text or embedding")
        if terms[0].kind == "emb" and is_remote(terms[0].name):
            raise InputError(
                f"{where}: '{operand}' names a URL, and what a file names is not fetched: copy that store here"
            )
    return Relation(name, a, b, c, answer)


def answer(
    captioner: "ZeroCap | Magic | Captioner",
    relations: Sequence[Relation],
    root: str | Path,
    journal: Journal,
    batch_size: int = 8,
    progress: bool = False,
    **options: Any,
) -> list[str]:
    """Caption the expression of each relation.

    Args:
        captioner: generates the captions.
        relations: to answer.
        root: the folder that paths are relative to.
        journal: stores each caption by its expression; those that it already has are not generated again.
        batch_size: relations that are captioned together.
        progress: show a progress bar on stderr, if it takes longer than a second.
        options: of the captioner's `caption`.

    Returns:
        A caption for each relation.

    Raises:
        InputError: as `embed_expressions`, `encoder_of` or the captioner.
    """
    batch_size = check_value("batch_size", batch_size, Positive)
    encoder = encoder_of(captioner)
    expressions = list(dict.fromkeys(relation.expression for relation in relations))
    left = [expression for expression in expressions if expression not in journal.results]
    done = len(expressions) - len(left)
    with tqdm(total=len(expressions), initial=done, unit=" relations", disable=not progress, delay=1) as bar:
        for start in range(0, len(left), batch_size):
            batch = left[start : start + batch_size]
            captions = captioner.caption(embed_expressions(batch, encoder, root), **options)
            journal.add(dict(zip(batch, captions, strict=True)))
            bar.update(len(batch))
    return [journal.results[relation.expression] for relation in relations]


def recalled(caption: str, answer: str) -> bool:
    """Whether the answer is within the first five words of a caption.

    Words are compared as in BLEU, in lower case and without punctuation. An answer of several words must be contiguous.

    >>> recalled("The flag of Italy.", "Italy"), recalled("The Italian flag", "Italy")
    (True, False)
    """
    return f" {tokenize(answer)} " in f" {' '.join(tokenize(caption).split()[:FIRST])} "


def score(relations: Sequence[Relation], captions: Sequence[str], encoder: Encoder) -> dict[str, dict[str, float]]:
    """The scores of Table 2, by the name of the relation, and "overall".

    Args:
        relations: at least one.
        captions: of each relation's expression, without the prompt.
        encoder: its text tower compares captions with answers.

    Returns:
        For each name: "BLEU-1" of its captions, with the answer as the only reference; "Recall@5", the share of
        captions that `recalled` accepts; and "CLIP-score", the mean cosine between the text embeddings of the caption
        and of "Image of" followed by the answer (section 5.2). All are 0.0-1.0, but cosines can be negative.
    """
    parts: dict[str, list[int]] = {}
    for row, relation in enumerate(relations):
        parts.setdefault(relation.name, []).append(row)
    answers = [relation.answer for relation in relations]
    bleu = score_parts(dict(enumerate(captions)), {row: [text] for row, text in enumerate(answers)}, parts, ["BLEU"])
    recall = np.array([recalled(caption, text) for caption, text in zip(captions, answers, strict=True)])
    first, second = (
        F.normalize(encoder.encode_texts(texts).float(), dim=-1)
        for texts in (captions, [f"Image of {text}" for text in answers])
    )
    cosines = (first * second).sum(dim=-1).cpu().numpy()
    return {
        name: {
            "BLEU-1": bleu[name].corpus["BLEU-1"],
            f"Recall@{FIRST}": float(recall[rows].mean()),
            "CLIP-score": float(cosines[rows].mean()),
        }
        for name, rows in {**parts, OVERALL: list(range(len(relations)))}.items()
    }


def table(scores: dict[str, dict[str, float]]) -> str:
    """The scores as a text table, a line for each relation."""
    names = list(scores[OVERALL])
    width = max(map(len, scores))
    lines = [" " * width + "".join(f"{name:>12}" for name in names)]
    lines += [name.ljust(width) + "".join(f"{values[key]:12.3f}" for key in names) for name, values in scores.items()]
    return "\n".join(lines)
