"""Prompts of training images: which rows they are asked for, when they are drawn anew, and how long they may be."""

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from prefixcap.data import CaptionData
from prefixcap.errors import InputError
from prefixcap.packing import Batch
from prefixcap.store import StoreSplit
from prefixcap.training import CaptionTraining
from prefixcap.training.checkpoints import LastCheckpoint
from prefixcap.training.objectives import SelfCritical
from tests.conftest import plain_loss, small_captioner
from tests.data.test_batches import drawn_prompts, stopped_after
from tests.data.test_batches import store as store  # a fixture: 40 images, none to three captions each
from tests.training.test_self_critical import Recorded
from tests.training.test_training import make_store

ENTITIES = {"name": "clip_entities", "vocabulary": ["star"]}


class Named:
    """Names each row and the epoch, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[int], int | None]] = []

    def __call__(self, split: StoreSplit, rows: NDArray[np.int64], epoch: int | None) -> list[str]:
        self.asked.append((split.name, rows.tolist(), epoch))
        return [f"{split.name} {row} {epoch}" for row in rows.tolist()]


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("kind", ["alone", "grouped", "text"])
def test_prompts_are_those_of_the_rows_that_are_read(kind: str, first: bool, store: Path) -> None:
    options: dict[str, Any] = {"grouped": {"group_captions": True}, "text": {"from_text": True}}.get(kind, {})
    captioner = small_captioner()
    captioner.use_prompts(ENTITIES, first=first)
    data = CaptionData(store, captioner, 6, num_workers=0, prompts=Named(), **options)
    loader = data.train_dataloader()
    for epoch in (0, 3):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for batch in loader:
            rows = batch.caption_rows if kind == "text" else batch.image_rows
            assert batch.prompts == [f"train {row} {epoch}" for row in rows]
            tokens = [captioner.language_model.tokenize_prompt(prompt) for prompt in batch.prompts]
            prompt_ids = [token for row in tokens for token in row]
            assert len(prompt_ids) > 6 and batch.input_ids[: len(prompt_ids)].tolist() == prompt_ids
            prefixes = batch.input_index[: 4 * len(batch.prompts)].view(-1, 4)  # of each image
            of_prompts = batch.input_index[prefixes.numel() :][: len(prompt_ids)].split(list(map(len, tokens)))
            for prefix, prompt in zip(prefixes, of_prompts, strict=True):
                together = torch.cat((prompt, prefix) if first else (prefix, prompt))
                assert torch.equal(together, together[0] + torch.arange(len(together)))
    (batch,) = data.val_dataloader()
    first = np.searchsorted(data.val_split.caption_images[:], np.arange(4))  # the first caption of each
    expected = np.minimum(first, len(data.val_split.captions) - 1) if kind == "text" else np.arange(4)
    assert batch.prompts == [f"val {row} None" for row in expected]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_drawn_depends_on_epoch_and_row_alone(workers: int, store: Path) -> None:
    """Also in worker processes that live longer than an epoch, and where a run goes on within its second epoch."""
    captioner = small_captioner()
    data = CaptionData(store, captioner, 7, workers, prompts=drawn_prompts)
    loader = data.train_dataloader()
    epochs = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        epochs.append(list(loader))
        for batch in epochs[-1]:
            assert batch.prompts == drawn_prompts(data.train_split, np.array(batch.image_rows), epoch)
    image_prompts = [
        {row: prompt for b in epoch for row, prompt in zip(b.image_rows, b.prompts, strict=True)} for epoch in epochs
    ]
    assert image_prompts[0] != image_prompts[1] != image_prompts[2]
    resumed = CaptionData(store, captioner, 7, 2 - workers, prompts=drawn_prompts)
    resumed.trainer = stopped_after(4)
    loader = resumed.train_dataloader()
    loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
    rest = list(loader)
    assert len(rest) == len(epochs[1]) - 4 > 2
    for one, other in zip(rest, epochs[1][4:], strict=True):
        assert one.prompts == other.prompts and torch.equal(one.input_ids, other.input_ids)


class Killed(Exception):
    pass


class Record(L.Callback):
    """What each step reads, until the run is killed before a step."""

    def __init__(self, end: int) -> None:
        self.end, self.steps = end, dict[int, tuple[list[int], list[str]]]()

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Batch, batch_idx: int) -> None:
        if trainer.global_step == self.end:
            raise Killed
        self.steps[trainer.global_step] = batch.caption_rows, batch.prompts


def fit(store: Path, folder: Path, end: int) -> dict[int, tuple[list[int], list[str]]]:
    """Train for 20 steps, from the folder's checkpoint if there is one."""
    captioner, record, last = small_captioner(), Record(end), folder / "last.ckpt"
    data = CaptionData(store, captioner, 7, 0, prompts=drawn_prompts)
    trainer = L.Trainer(
        max_steps=20, logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        accelerator="cpu", default_root_dir=folder, limit_val_batches=0, callbacks=[LastCheckpoint(last, 1), record],
    )  # fmt: skip
    training = CaptionTraining(captioner, data.val_split, 1e-2, warmup_steps=2)
    with suppress(Killed):
        trainer.fit(training, data, ckpt_path=last if last.exists() else None, weights_only=True)
    return record.steps


def test_a_run_that_is_resumed_within_an_epoch_reads_the_same_prompts(store: Path, tmp_path: Path) -> None:
    """An epoch has 9 batches: the run is killed within its second one."""
    whole = fit(store, tmp_path / "whole", -1)
    first, second = fit(store, tmp_path / "parts", 13), fit(store, tmp_path / "parts", -1)
    assert list(first) == list(range(13)) and list(second) == list(range(13, 20))
    assert whole == first | second


def texts(given: str) -> Callable[..., list[str]]:
    return lambda split, rows, epoch: [given if split.name == "train" and row == 1 else "" for row in rows.tolist()]


def test_a_prompt_that_does_not_fit_is_refused_or_cut(tmp_path: Path) -> None:
    captioner = small_captioner()  # context 96, prefix 4
    store = make_store(tmp_path / "store", captions=(("A red star.",), ("A star.", "Two blue rings.")))
    lm, original = captioner.language_model, " \n red\n\nstar, blue  ring " * 30
    longest = max(map(len, lm.tokenize(["A star.", "Two blue rings."])))
    most = 92 - longest
    fits = "star" + " star" * (most - len(lm.tokenize_prompt("star")))
    assert len(lm.tokenize_prompt(fits)) == most
    for given in ({}, {"group_captions": True}):
        CaptionData(store, captioner, prompts=texts(fits), keep_tokens=False, **given)
        with pytest.raises(InputError) as error:
            CaptionData(store, captioner, prompts=texts(fits + " star"), keep_tokens=False, **given)
        assert str(error.value) == (
            f"the prompt of image 1 (train) has {most + 1} tokens, and a caption after it {longest}; with a prefix of "
            f"4, language model 'random' takes 92: shorten them, or cut with max_prompt_tokens={most}"
        )
    for limit in (most, 7, 1):
        data = CaptionData(store, captioner, 2, prompts=texts(original), max_prompt_tokens=limit)
        cut = max((prompt for batch in data.train_dataloader() for prompt in batch.prompts), key=len)
        next_word = re.match(r"\s*\S+", original[len(cut) :])
        assert original.startswith(cut) and next_word and len(lm.tokenize_prompt(cut)) <= limit
        assert len(lm.tokenize_prompt(cut + next_word[0])) > limit


def test_a_prompt_that_is_too_long_in_a_later_epoch_is_told_in_one_line(tmp_path: Path) -> None:
    """By a worker process."""

    def growing(split: StoreSplit, rows: NDArray[np.int64], epoch: int | None) -> list[str]:
        return ["star " * (epoch or 0) * 50] * len(rows)

    store = make_store(tmp_path / "store")
    for workers in (0, 1):
        loader = CaptionData(store, small_captioner(), 4, workers, prompts=growing).train_dataloader()
        loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
        assert len(next(iter(loader)).prompts) == 4
        loader.sampler.set_epoch(9)  # type: ignore[attr-defined]
        with pytest.raises(
            InputError, match=r"^the prompt of image \d \(train\) has \d+ tokens, and a caption"
        ) as error:
            list(loader)
        assert "\n" not in str(error.value)


def test_wrong_prompts_are_refused(tmp_path: Path) -> None:
    store, captioner = make_store(tmp_path / "store"), small_captioner()
    wrong: Any
    for wrong, message in (
        (lambda split, rows, epoch: ["a"], r"there are 1 prompts for 9 rows of split 'train'"),
        (lambda split, rows, epoch: [None] * len(rows), r"must be a text, not None"),
        (lambda split, rows, epoch: ["\ud800"] * len(rows), r"half of a surrogate pair"),
    ):
        with pytest.raises(InputError, match=message):
            CaptionData(store, captioner, prompts=wrong)
    with pytest.raises(InputError, match="max_prompt_tokens cuts prompts: give prompts, too"):
        CaptionData(store, captioner, max_prompt_tokens=3)
    with pytest.raises(InputError, match="max_prompt_tokens must be"):
        CaptionData(store, captioner, prompts=texts(""), max_prompt_tokens=0)


def test_validation_captions_are_written_after_the_prompts(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = small_captioner()
    data = CaptionData(store, captioner, prompts=Named())
    training = CaptionTraining(captioner, data.val_split)
    training.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    monkeypatch.setattr(training, "log", lambda *_, **__: None)
    given: list[list[str]] = []

    def caption(*_: object, prompts: list[str], **__: object) -> list[str]:
        given.append(prompts)
        return prompts

    monkeypatch.setattr(captioner, "caption", caption)
    (batch,) = data.val_dataloader()
    training.validation_step(batch, 0)
    assert given == [[f"val {row} None" for row in range(4)]]
    lm, total = captioner.language_model, 0.0
    for row, text in enumerate(given[0]):
        prefix = captioner.prefix(batch.embeddings[row : row + 1])
        for caption in data.val_split.captions[np.flatnonzero(data.val_split.caption_images[:] == row)]:
            targets = lm.tokenize([caption])[0]
            words = lm.embed(torch.tensor([lm.tokenize_prompt(text) + targets[:-1]]))
            logits = lm.model(inputs_embeds=torch.cat((prefix, words), dim=1)).logits[0, -len(targets) :]
            total += torch.nn.functional.cross_entropy(logits, torch.tensor(targets), reduction="sum").item()
    assert training.val_loss.compute().item() == pytest.approx(total / len(batch.targets), rel=1e-5)


@pytest.mark.parametrize("first", [False, True])
def test_self_critical_gradients_are_those_of_a_plain_loop(first: bool, store: Path) -> None:
    captioner, reward = small_captioner("full").eval(), Recorded()
    captioner.use_prompts(ENTITIES, first=first)
    data = CaptionData(store, captioner, 8, prompts=drawn_prompts, group_captions=True)
    objective = SelfCritical(captioner, None, reward, draws=3, sample_tokens=7)
    training = CaptionTraining(captioner, data.val_split, objective=objective)
    training.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    batch, lm = next(iter(data.train_dataloader())), captioner.language_model
    prompts = [lm.tokenize_prompt(prompt) for prompt in batch.prompts]
    assert len({*map(len, prompts)}) > 2
    torch.manual_seed(5)
    sampled = objective.sample(batch.embeddings, prompts)
    torch.manual_seed(5)
    step = training.training_step(batch, 0)
    step["loss"].backward()
    found = {name: weight.grad.clone() for name, weight in captioner.named_parameters() if weight.grad is not None}

    captioner.zero_grad()
    rewards = [len(lm.detokenize(tokens)) / 10 for tokens in sampled]
    total = torch.zeros(())
    for place, tokens in enumerate(sampled):
        own = range(place // 3 * 3, place // 3 * 3 + 3)
        advantage = rewards[place] - sum(rewards[other] for other in own if other != place) / 2
        embedding, prompt = batch.embeddings[place // 3], prompts[place // 3]
        if first:
            loss = plain_loss(captioner, embedding, tokens, prompt)
        else:
            loss = plain_loss(captioner, embedding, prompt + tokens)
            loss = loss - plain_loss(captioner, embedding, prompt) if prompt else loss
        total = total + advantage * loss / sum(map(len, sampled))
    total.backward()
    assert total != 0 and len(found) > 10
    for name, weight in captioner.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-6)
    assert data.longest_prompt == max(
        len(lm.tokenize_prompt(p)) for p in drawn_prompts(data.train_split, np.arange(40), None)
    )
