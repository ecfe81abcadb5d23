"""Zero-shot visual question answering with captions (MacCap, Qiu et al. 2024, sections 4.4 and 5.4, Table 4).

A caption represents the image: a language model continues "[caption] Question: [question] Answer:". Its answers are too
wordy to compare with the true answer word by word, so candidates are ranked by the cosine between their CLIP text
embedding and that of the answer. A question counts as correct at k if the true answer, `multiple_choice_answer` in
VQAv2's annotations, is among the k nearest candidates.

The paper does not say where its 3,128 candidates come from or where an answer ends; its released code only generates.
3,128 is the size of the list that came with ALBEF: the answers that occur nine times or more in VQAv2's training and
validation set (https://github.com/salesforce/ALBEF/issues/40). Here the candidates are the 3,128 most frequent answers
of the training annotations. For the end of an answer, see `first_sentence`.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from prefixcap.decoding import decode
from prefixcap.encoders import Encoder
from prefixcap.errors import InputError, listed
from prefixcap.language import LanguageModel, tokenize_texts
from prefixcap.textonly.vqa_files import Question
from prefixcap.utils.files import atomic_write_text
from prefixcap.utils.options import Positive, check_options, check_value

TOP = (1, 5, 10)

# After its answer a base model continues with a question of its own.
_END = re.compile(r"[.!?](?=\s|$)|\b(?:Question|Answer):|\n")


@dataclass(frozen=True)
class Answered:
    """Questions and their answers.

    Attributes:
        questions: that were asked.
        captions: of each question's image; None: the question was asked without a caption.
        answers: of the language model, one for each question.
        candidates: that the answers were compared with.
        nearest: the candidates nearest to each answer, the nearest first.
    """

    questions: Sequence[Question]
    captions: Sequence[str | None]
    answers: Sequence[str]
    candidates: Sequence[str]
    nearest: Sequence[Sequence[str]]

    @property
    def accuracy(self) -> dict[str, float]:
        """See `accuracy`."""
        return accuracy(self.nearest, [question.truth for question in self.questions])

    @property
    def reachable(self) -> float:
        """Share of questions, 0.0-1.0, whose true answer is a candidate: an upper bound of the accuracy."""
        known = set(self.candidates)
        return float(np.mean([question.truth in known for question in self.questions]))

    def write(self, folder: Path, settings: dict[str, Any]) -> list[str]:
        """Write the results to a folder.

        `vqa.json` has the accuracies and `settings`, `answers.json` every question with its answer, and `captions.json`
        the captions in COCO's result format.

        Returns:
            The names of the files.

        Raises:
            InputError: the folder cannot be written to.
        """
        summary = {
            "accuracy": self.accuracy,
            "questions": len(self.questions),
            "candidates": len(self.candidates),
            "reachable": self.reachable,
            "empty answers": sum(not answer for answer in self.answers),
            **settings,
        }
        rows = list(zip(self.questions, self.captions, self.answers, self.nearest, strict=True))
        entries = [
            {
                "question_id": question.id,
                "image_id": question.image_id,
                "question": question.text,
                "caption": caption,
                "answer": answer,
                "nearest": nearest,
                "truth": question.truth,
            }
            for question, caption, answer, nearest in rows
        ]
        files: dict[str, Any] = {"vqa.json": summary, "answers.json": entries}
        captions = {question.image_id: caption for question, caption, *_ in rows if caption is not None}
        if captions:
            files["captions.json"] = [{"image_id": image, "caption": caption} for image, caption in captions.items()]
        for name, content in files.items():
            atomic_write_text(folder / name, json.dumps(content, indent=1))
        return list(files)

    def table(self) -> str:
        """The accuracies in %, as in Table 4."""
        figures = {name: f"{100 * share:.2f}" for name, share in self.accuracy.items()}
        return "\n".join("".join(f"{text:>8}" for text in row) for row in (figures.keys(), figures.values()))


def ask(
    language_model: LanguageModel,
    encoder: Encoder,
    questions: Sequence[Question],
    captions: Sequence[str | None],
    candidates: Sequence[str],
    batch_size: int = 32,
    progress: bool = False,
    **options: Any,
) -> Answered:
    """Let a language model answer questions about images, and rank candidates by similarity to its answers.

    Args:
        language_model: answers the questions.
        encoder: its text tower compares answers with candidates.
        questions: to answer.
        captions: of each question's image; None: the question is asked without a caption.
        candidates: answers to choose from.
        batch_size: questions that are answered together.
        progress: show a progress bar on stderr, if it takes longer than a second.
        options: of `write_answers`.

    Raises:
        InputError: as `write_answers`.
    """
    options = check_options("answers", write_answers, options, positional=5)
    answers = write_answers(language_model, questions, captions, batch_size, progress, **options)
    return Answered(questions, captions, answers, candidates, nearest_candidates(encoder, answers, candidates))


def prompt(question: str, caption: str | None) -> str:
    """The text that the language model continues (section 4.4); without a caption, the baseline's (section 5.4)."""
    asked = f"Question: {question} Answer:"
    return asked if caption is None else f"{caption} {asked}"


def first_sentence(text: str) -> str:
    """The answer in a generated text: everything before the first end of a line or sentence, or the next question.

    Leading blank lines are skipped, and the full stop is dropped, as candidates have none.

    >>> first_sentence(" Yes, 2.5 metres. It is a tree")
    'Yes, 2.5 metres'
    """
    return _END.split(text.strip(), maxsplit=1)[0].strip()


def write_answers(
    language_model: LanguageModel,
    questions: Sequence[Question],
    captions: Sequence[str | None],
    batch_size: int = 32,
    progress: bool = False,
    max_tokens: int = 10,
    min_tokens: int = 1,
    beams: int = 5,
    length_penalty: float = -1.0,
) -> list[str]:
    """Generate the answer to each question by beam search.

    Only prompts of equal length are batched, so that padding cannot change an answer.

    Args:
        language_model: answers the questions.
        questions: to answer.
        captions: of each question's image; None: the question is asked without a caption.
        batch_size: questions that are answered together.
        progress: show a progress bar on stderr, if it takes longer than a second.
        max_tokens: maximum of an answer, before it is cut; this and the following are BLIP-2's, as in the released
            code.
        min_tokens: minimum of an answer.
        beams: of the search; 1: greedy.
        length_penalty: see `prefixcap.decoding.beam`; below 0.0, short answers are favoured.

    Raises:
        InputError: a prompt exceeds the language model's context, or an option is out of range.
    """
    batch_size = check_value("batch_size", batch_size, Positive)
    asked = [prompt(question.text, caption) for question, caption in zip(questions, captions, strict=True)]
    # With the tokens that the tokenizer puts before a text: OPT and Llama were trained only on such texts.
    start = _start_tokens(language_model)
    tokens = [[*start, *row] for row in tokenize_texts(language_model.tokenizer, [text.strip() for text in asked])]
    longest = (language_model.context or float("inf")) - max_tokens
    if long := [question.id for question, row in zip(questions, tokens, strict=True) if len(row) > longest]:
        raise InputError(
            f"the prompts of {len(long):,} questions and max_tokens={max_tokens} exceed the context of language model "
            f"'{language_model.name}' ({language_model.context}): shorten the captions ({listed('question', long)})"
        )
    by_length: dict[int, list[int]] = {}
    for row in sorted(
        range(len(tokens)), key=lambda row: -len(tokens[row])
    ):  # the longest first: memory runs out at once or never
        by_length.setdefault(len(tokens[row]), []).append(row)
    device = next(language_model.parameters()).device
    search: dict[str, Any] = {"min_tokens": min_tokens, "beams": beams, "length_penalty": length_penalty}
    answers = [""] * len(tokens)
    with torch.inference_mode(), tqdm(total=len(tokens), unit=" questions", disable=not progress, delay=1) as bar:
        for rows in by_length.values():
            for batch in _batches(rows, batch_size):
                prompts = language_model.embed(torch.tensor([tokens[row] for row in batch], device=device))
                generated = decode(language_model, prompts, "beam", max_tokens=max_tokens, **search)
                for row, (best,) in zip(batch, generated, strict=True):
                    answers[row] = first_sentence(language_model.tokenizer.decode(best, skip_special_tokens=True))
                bar.update(len(batch))
    return answers


def _start_tokens(language_model: LanguageModel) -> list[int]:
    """The special tokens that a tokenizer puts before every text."""
    bare, full = (language_model.tokenizer("a", add_special_tokens=add)["input_ids"] for add in (False, True))
    return list(full[: full.index(bare[0])])


def nearest_candidates(
    encoder: Encoder, answers: Sequence[str], candidates: Sequence[str], count: int = max(TOP), batch_size: int = 256
) -> list[list[str]]:
    """The candidates whose text embeddings have the highest cosine with that of each answer, the nearest first.

    Args:
        encoder: embeds the texts.
        answers: texts.
        candidates: texts.
        count: how many for each answer, at most.
        batch_size: texts that are embedded together.
    """
    embeddings = torch.cat([_directions(encoder, batch) for batch in _batches(candidates, batch_size)])  # (c, dim)
    nearest: list[list[str]] = []
    for batch in _batches(answers, batch_size):
        cosines = _directions(encoder, batch) @ embeddings.T  # (batch, c)
        best = cosines.topk(min(count, len(candidates))).indices.tolist()
        nearest += [[candidates[index] for index in row] for row in best]
    return nearest


def accuracy(nearest: Sequence[Sequence[str]], truths: Sequence[str]) -> dict[str, float]:
    """Share of questions, 0.0-1.0, whose true answer is among the 1, 5 and 10 nearest candidates.

    >>> accuracy([["two", "three"], ["red", "blue"]], ["three", "red"])
    {'Top1': 0.5, 'Top5': 1.0, 'Top10': 1.0}
    """
    return {
        f"Top{count}": float(np.mean([truth in near[:count] for near, truth in zip(nearest, truths, strict=True)]))
        for count in TOP
    }


def _directions(encoder: Encoder, texts: Sequence[str]) -> Tensor:
    """(texts, dim) text embeddings of unit length, float32."""
    return F.normalize(encoder.encode_texts(texts).float(), dim=-1)


def _batches(rows: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
