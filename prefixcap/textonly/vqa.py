"""Zero-shot visual question answering with captions (MacCap, Qiu et al. 2024, sections 4.4 and 5.4, Table 4).

A caption stands in for the image: a language model goes on from "[caption] Question: [question] Answer:". What it
answers is too wordy to be compared with the true answer word by word, so the candidates are ranked by the cosine of
their CLIP text embeddings with that of the answer. A question counts as right at k if the true answer,
`multiple_choice_answer` in VQAv2's annotations, is among the k nearest candidates.

The paper leaves open where its 3,128 candidates come from and where an answer ends; its released code only generates.
3,128 is the size of the list that came with ALBEF: the answers that occur nine times or more in VQAv2's training and
validation set (https://github.com/salesforce/ALBEF/issues/40). Here they are as many of the most frequent answers of
the training annotations alone. For where an answer ends, see `first_sentence`.
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

# A base model that has answered goes on with a question of its own.
_END = re.compile(r"[.!?](?=\s|$)|\b(?:Question|Answer):|\n")


@dataclass(frozen=True)
class Answered:
    """Questions and their answers.

    Attributes:
        questions: that were asked.
        captions: of each question's image; None where the question alone was asked.
        answers: one each, in the language model's words.
        candidates: what the answers were compared with.
        nearest: to each answer, the nearest candidates, the nearest first.
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
        """Share of questions, 0.0-1.0, whose true answer is a candidate: no accuracy is higher."""
        known = set(self.candidates)
        return float(np.mean([question.truth in known for question in self.questions]))

    def write(self, folder: Path, settings: dict[str, Any]) -> list[str]:
        """Write the results; give the names of the files.

        `vqa.json` has the accuracies and `settings`, `answers.json` every question with its answer, and `captions.json`
        the captions as COCO results, to be asked about again. Raises InputError if the folder cannot be written to.
        """
        of_all = {
            "accuracy": self.accuracy,
            "questions": len(self.questions),
            "candidates": len(self.candidates),
            "reachable": self.reachable,
            "empty answers": sum(not answer for answer in self.answers),
            **settings,
        }
        rows = list(zip(self.questions, self.captions, self.answers, self.nearest, strict=True))
        of_each = [
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
        files: dict[str, Any] = {"vqa.json": of_all, "answers.json": of_each}
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
    """Let a language model answer questions about images, and find the candidates that are nearest to its answers.

    Args:
        language_model: answers.
        encoder: whose text tower compares answers with candidates.
        questions: to answer.
        captions: of each question's image; None: the question alone is asked.
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
    """What the language model answers (section 4.4); without a caption, that of the paper's baseline (section 5.4)."""
    asked = f"Question: {question} Answer:"
    return asked if caption is None else f"{caption} {asked}"


def first_sentence(text: str) -> str:
    """What of a language model's text is its answer: all before the first line end, sentence end or next question.

    Blank lines before it do not count, and the full stop is dropped, which no candidate has.

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
    """Each question's answer in the words of a language model, by beam search.

    Only prompts of one length are read together, so that no padding can change an answer.

    Args:
        language_model: answers.
        questions: to answer.
        captions: of each question's image; None: the question alone is asked.
        batch_size: questions that are answered together.
        progress: show a progress bar on stderr, if it takes longer than a second.
        max_tokens: of an answer, before it is cut; this and what follows are BLIP-2's, which the released code takes.
        min_tokens: of an answer.
        beams: of the search; 1: greedy.
        length_penalty: see `prefixcap.decoding.beam`; below 0.0, short answers are favoured.

    Raises:
        InputError: a prompt does not fit the language model's context, or an option makes no sense.
    """
    batch_size = check_value("batch_size", batch_size, Positive)
    asked = [prompt(question.text, caption) for question, caption in zip(questions, captions, strict=True)]
    # With what the tokenizer puts before a text: OPT and Llama have only seen texts that begin so.
    before = _before_texts(language_model)
    tokens = [[*before, *row] for row in tokenize_texts(language_model.tokenizer, [text.strip() for text in asked])]
    room = (language_model.context or float("inf")) - max_tokens
    if long := [question.id for question, row in zip(questions, tokens, strict=True) if len(row) > room]:
        raise InputError(
            f"the prompts of {len(long):,} questions and max_tokens={max_tokens} exceed the context of language model "
            f"'{language_model.name}' ({language_model.context}): shorten the captions ({listed('question', long)})"
        )
    by_length: dict[int, list[int]] = {}
    for row in sorted(range(len(tokens)), key=lambda row: -len(tokens[row])):  # if memory runs out, then at once
        by_length.setdefault(len(tokens[row]), []).append(row)
    device = next(language_model.parameters()).device
    search: dict[str, Any] = {"min_tokens": min_tokens, "beams": beams, "length_penalty": length_penalty}
    answers = [""] * len(tokens)
    with torch.inference_mode(), tqdm(total=len(tokens), unit=" questions", disable=not progress, delay=1) as bar:
        for rows in by_length.values():
            for batch in _batches(rows, batch_size):
                words = language_model.embed(torch.tensor([tokens[row] for row in batch], device=device))
                written = decode(language_model, words, "beam", max_tokens=max_tokens, **search)
                for row, (best,) in zip(batch, written, strict=True):
                    answers[row] = first_sentence(language_model.tokenizer.decode(best, skip_special_tokens=True))
                bar.update(len(batch))
    return answers


def _before_texts(language_model: LanguageModel) -> list[int]:
    """The special tokens that a tokenizer puts before every text."""
    bare, whole = (language_model.tokenizer("a", add_special_tokens=add)["input_ids"] for add in (False, True))
    return list(whole[: whole.index(bare[0])])


def nearest_candidates(
    encoder: Encoder, answers: Sequence[str], candidates: Sequence[str], count: int = max(TOP), batch_size: int = 256
) -> list[list[str]]:
    """The candidates whose text embeddings have the highest cosine with each answer's, the nearest first.

    Args:
        encoder: embeds them.
        answers: texts.
        candidates: texts, of which each is embedded once.
        count: how many to give; all, where there are no more.
        batch_size: texts that are embedded together.
    """
    of_candidates = torch.cat([_directions(encoder, batch) for batch in _batches(candidates, batch_size)])
    nearest: list[list[str]] = []
    for batch in _batches(answers, batch_size):
        cosines = _directions(encoder, batch) @ of_candidates.T  # (batch, candidates)
        best = cosines.topk(min(count, len(candidates))).indices.tolist()
        nearest += [[candidates[place] for place in places] for places in best]
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
    """(texts, dim) text embeddings of length one, float32."""
    return F.normalize(encoder.encode_texts(texts).float(), dim=-1)


def _batches(rows: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
