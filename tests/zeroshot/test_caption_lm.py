"""Fine-tuning on captions: losses against plain loops, runs on the small world that learn, stop and go on."""

import json
import re
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prefixcap.demo.scenes import captions, random_scene
from prefixcap.errors import InputError
from prefixcap.language import load_language_model
from prefixcap.metrics.perplexity import negative_log_likelihood
from prefixcap.training.checkpoints import AtomicCheckpointIO, LastCheckpoint, RandomState, Stopped
from prefixcap.zeroshot.caption_lm import BestFolder, CaptionLMTraining, CaptionTexts, contrastive_loss
from prefixcap.zeroshot.inputs import start_token
from tests.conftest import ROOT, small_lm


def sentences(count: int, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    return [captions(random_scene(generator, "in-domain"), generator)[0] for _ in range(count)]


def trainer_for(run: Path, steps: int, every: int = 10, callbacks: tuple[L.Callback, ...] = ()) -> L.Trainer:
    return L.Trainer(
        max_steps=steps, max_epochs=-1, val_check_interval=every, check_val_every_n_epoch=None, accelerator="cpu",
        callbacks=[BestFolder(run / "language_model"), LastCheckpoint(run / "last.ckpt"), RandomState(), *callbacks],
        plugins=[AtomicCheckpointIO()], logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, gradient_clip_val=1.0, default_root_dir=str(run),
    )  # fmt: skip


def test_the_contrastive_loss_is_that_of_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 7, 16, generator=generator) + 1.0  # cosines about the margin
    lengths = torch.tensor([7, 1, 4, 2, 6])
    for margin in (0.5, 0.3, 1.0):
        pairs = []
        for states, length in zip(hidden, lengths.tolist(), strict=True):
            for i in range(length):
                for j in range(length):
                    if i != j:
                        own = float(F.cosine_similarity(states[i], states[i], dim=0))
                        other = float(F.cosine_similarity(states[i], states[j], dim=0))
                        pairs.append(max(0.0, margin - own + other))
        assert min(pairs) == 0 < max(pairs)
        assert float(contrastive_loss(hidden, lengths, margin)) == pytest.approx(np.mean(pairs), abs=1e-6)
    assert float(contrastive_loss(hidden[:, :1], torch.ones(5, dtype=torch.long))) == 0, "no pairs"


@pytest.mark.parametrize("margin", [None, 1.0])
def test_the_loss_of_a_batch_is_that_of_its_captions_read_alone(margin: float | None) -> None:
    lm = small_lm("full").eval()
    texts = ["A red star.", "There is a large blue circle in the snow.", "A ring"]
    training = CaptionLMTraining(lm, margin)
    losses = training.training_step(CaptionTexts(lm, texts, texts).batch(texts), 0)
    nats: list[Tensor] = []
    rows: list[Tensor] = []
    for text in texts:
        tokens = torch.tensor([[lm.eos_token_id, *lm.tokenizer(text)["input_ids"], lm.eos_token_id]])
        output = lm.model(input_ids=tokens[:, :-1], output_hidden_states=True)
        nats += list(F.cross_entropy(output.logits[0], tokens[0, 1:], reduction="none"))
        rows.append(output.hidden_states[-1][0])
    expected = torch.stack(nats).mean()
    torch.testing.assert_close(losses["train_loss"], expected.detach(), atol=1e-5, rtol=0)
    if margin is not None:
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        of_pairs = contrastive_loss(padded, torch.tensor([len(row) for row in rows]), margin)
        assert float(of_pairs.detach()) > 0
        expected = expected + of_pairs
    torch.testing.assert_close(losses["loss"], expected, atol=1e-5, rtol=0)
    losses["loss"].backward()
    found = lm.model.get_input_embeddings().weight.grad.clone()
    lm.zero_grad()
    expected.backward()
    torch.testing.assert_close(found, lm.model.get_input_embeddings().weight.grad, atol=1e-6, rtol=1e-4)


def test_a_long_caption_is_cut_and_ends_all_the_same() -> None:
    lm = small_lm("full")
    read, targets, lengths = CaptionTexts(lm, ["x"], ["x"], max_caption_tokens=5).batch(["a star " * 9, "A star."])
    tokens = lm.tokenizer("a star " * 9)["input_ids"][:5]
    assert read[0].tolist() == [lm.eos_token_id, *tokens]
    assert targets[0].tolist() == [*tokens, lm.eos_token_id]
    assert lengths.tolist() == [6, 1 + len(lm.tokenizer("A star.")["input_ids"])]


def test_captions_that_it_has_not_seen_get_likelier_and_the_best_weights_can_be_loaded(tmp_path: Path) -> None:
    lm = load_language_model("demo", "full")
    val = sentences(100, 1)
    before = negative_log_likelihood(lm, val)[0].sum()
    L.seed_everything(0, verbose=False)
    data = CaptionTexts(lm, sentences(600, 0), val, batch_size=32)
    trainer = trainer_for(tmp_path, 40)
    trainer.fit(CaptionLMTraining(lm, learning_rate=1e-3), data)
    tuned = load_language_model(str(tmp_path / "language_model"))
    after = negative_log_likelihood(tuned, val)[0].sum()
    assert float(after) < 0.93 * float(before)
    nats, tokens = 0.0, 0
    for text in val:
        row = torch.tensor([[lm.eos_token_id, *lm.tokenizer(text)["input_ids"], lm.eos_token_id]])
        with torch.no_grad():
            logits = tuned.model(input_ids=row[:, :-1]).logits[0]
        nats, tokens = nats + float(F.cross_entropy(logits, row[0, 1:], reduction="sum")), tokens + len(logits)
    best = next(callback for callback in trainer.callbacks if isinstance(callback, BestFolder))  # type: ignore[attr-defined]
    assert best.loss == pytest.approx(nats / tokens, abs=1e-5), "also where the last batch is a small one"
    assert nats - float(after) < 0.1 * len(val), "captions end where they should"


class Halt(L.Callback):
    """Sends this process a signal after so many steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            signal.raise_signal(signal.SIGTERM)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    def fit(run: Path, *callbacks: L.Callback, ckpt: Path | None = None) -> dict[str, Tensor]:
        L.seed_everything(3, verbose=False)
        lm = small_lm("full")  # with dropout
        data = CaptionTexts(lm, sentences(50, 0), sentences(9, 1), batch_size=8)
        trainer = trainer_for(run, 19, 5, callbacks)
        trainer.fit(CaptionLMTraining(lm, 0.9, 1e-2), data, ckpt_path=ckpt, weights_only=True)
        return load_language_model(str(run / "language_model")).state_dict()

    whole = fit(tmp_path / "whole")
    with pytest.raises(Stopped):
        fit(tmp_path / "parts", Halt(12))  # within the second epoch of seven batches
    resumed = fit(tmp_path / "parts", ckpt=tmp_path / "parts" / "last.ckpt")
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_mistakes(tmp_path: Path) -> None:
    lm, texts = small_lm("full"), ["A star."]
    for make, message in [
        (lambda: CaptionLMTraining(small_lm()), "'random' is frozen: load it with tuning='full'"),
        (lambda: CaptionLMTraining(lm, margin=2.0), r"margin must lie between 0\.0 and 1\.0.* not 2\.0"),
        (lambda: CaptionLMTraining(lm, learning_rate=0.0), r"learning_rate must be above 0\.0.*learning_rate=0\.0"),
        (lambda: CaptionTexts(lm, [], texts), "there are no captions to train on"),
        (lambda: CaptionTexts(lm, texts, []), "there are no captions to validate on"),
        (lambda: CaptionTexts(lm, texts, texts, max_caption_tokens=96), "max_caption_tokens=96 between 1 and 95"),
        (lambda: CaptionTexts(lm, texts, texts, batch_size=0), "batch_size=0 must be at least 1"),
        (lambda: start_token(lm, "<s>"), "no token '<s>'"),
    ]:
        with pytest.raises(InputError, match=message):
            make()
    with pytest.raises(
        InputError, match="the validation loss is NaN or infinite after step 1: lower the learning rate"
    ):
        lm.model.lm_head.weight.data[0] = torch.nan
        trainer_for(tmp_path, 2, 1).fit(CaptionLMTraining(lm), CaptionTexts(lm, texts, texts))
    assert not (tmp_path / "language_model").exists()


def test_the_script(
    tmp_path: Path, mistake: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    by_split = enumerate(("train", "val", "test"))
    images = [
        {"split": split, "sentences": [{"raw": text} for text in sentences(40, seed)]} for seed, split in by_split
    ]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images}))
    command = ["train_lm", f"run_dir={tmp_path / 'run'}", "data=text", f"data.files={tmp_path / 'captions.json'}"]
    command += ["lm=demo", "trainer.max_steps=6", "trainer.val_check_interval=3", "batch_size=16"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [*command, "trainer.accelerator=cpu", "+trainer.enable_progress_bar=false"])
    last_lines = []
    for _ in range(2):  # the second time it finds the run at its end
        runpy.run_module("prefixcap.commands.train_lm", run_name="__main__")
        last_lines.append(capsys.readouterr().out.splitlines()[-2:])
    assert last_lines[0] == last_lines[1]
    assert re.match(r"best val_loss: \d\.\d+ nats a token, a perplexity of \d\.\d+$", last_lines[0][0])
    assert last_lines[0][1] == f"language model: {tmp_path / 'run' / 'language_model'}"
    load_language_model(str(tmp_path / "run" / "language_model"))
    assert "val_loss" in (tmp_path / "run" / "metrics.csv").read_text()
    assert "holds a run with other options" in mistake(*command, "seed=1")
    (tmp_path / "lines.txt").write_text("\n".join(sentences(9, 0)))
    lines = [
        "data=text",
        f"data.files={tmp_path / 'lines.txt'}",
        "data.reader.val_share=0.0",
        "lm=demo",
        f"run_dir={tmp_path / 'other'}",
    ]
    assert "set data.reader.val_share" in mistake("train_lm", *lines)
