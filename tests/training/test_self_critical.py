"""Self-critical training beside a plain loop over samples."""

from collections.abc import Sequence
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefixcap.captioner import Captioner
from prefixcap.data import CaptionData
from prefixcap.training import CaptionTraining
from prefixcap.training.objectives import SelfCritical
from tests.conftest import plain_loss, small_captioner
from tests.training.test_training import make_store


class Recorded:
    """A reward that keeps what it was asked, and prefers captions with many letters."""

    def __call__(self, captions: Sequence[str], images: Sequence[int], embeddings: Tensor) -> NDArray[np.float64]:
        self.asked = list(captions), list(images), embeddings
        return np.array([len(caption) / 10 for caption in captions])


@pytest.fixture
def data(tmp_path: Path) -> CaptionData:
    return CaptionData(make_store(tmp_path / "store"), small_captioner(), batch_size=4, group_captions=True)


@pytest.mark.parametrize("start_token", [False, True])
def test_gradients_are_those_of_a_plain_loop(start_token: bool, data: CaptionData) -> None:
    small, reward = small_captioner("full"), Recorded()
    captioner = Captioner(
        small.language_model, small.encoder_identity, small.mapper_options, start_token=start_token
    ).eval()
    objective = SelfCritical(captioner, None, reward, draws=3, sample_tokens=7)
    training = CaptionTraining(captioner, data.val_split, objective=objective)
    training.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    batch = next(iter(data.train_dataloader()))
    torch.manual_seed(5)
    sampled = objective.sample(batch.embeddings)
    torch.manual_seed(5)
    step = training.training_step(batch, 0)
    step["loss"].backward()
    found = {name: weight.grad.clone() for name, weight in captioner.named_parameters() if weight.grad is not None}
    captions, images, embeddings = reward.asked
    assert captions == [captioner.language_model.detokenize(tokens) for tokens in sampled]
    assert images == [image for image in batch.image_rows for _ in range(3)]
    assert torch.equal(embeddings, batch.embeddings.repeat_interleave(3, 0))

    captioner.zero_grad()
    total, count = torch.zeros(()), sum(map(len, sampled))
    for place, tokens in enumerate(sampled):
        own = range(place // 3 * 3, place // 3 * 3 + 3)
        others = [len(captions[other]) / 10 for other in own if other != place]
        advantage = len(captions[place]) / 10 - sum(others) / 2
        total = total + advantage * plain_loss(captioner, batch.embeddings[place // 3], tokens) / count
    total.backward()
    assert total != 0 and len(found) > 10
    assert step.keys() == {"loss", "train_reward"}
    assert step["train_reward"].item() == pytest.approx(np.mean([len(caption) / 10 for caption in captions]))
    for name, weight in captioner.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-6)


def test_what_is_rewarded_gets_likelier(data: CaptionData) -> None:
    torch.manual_seed(0)
    reward = Recorded()
    captioner = small_captioner("full", "mlp")
    objective = SelfCritical(captioner, None, reward, draws=8, sample_tokens=4)
    training = CaptionTraining(
        captioner, data.val_split, learning_rate=1e-2, warmup_steps=0, max_tokens=4, objective=objective
    )
    lengths: list[float] = []
    training.on_train_batch_end = lambda *given: lengths.append(np.mean([len(text) for text in reward.asked[0]]))  # type: ignore
    trainer = L.Trainer(
        max_epochs=20, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(training, data)
    assert np.mean(lengths[-3:]) > 1.5 * np.mean(lengths[:3]), [round(float(x), 1) for x in lengths]
