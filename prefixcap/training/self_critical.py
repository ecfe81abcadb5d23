"""Self-critical sequence training (Rennie et al. 2017), with the mean of an image's other samples as the baseline (Luo
2020, "A Better Variant of Self-Critical Sequence Training")."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefixcap.captioner import Captioner
from prefixcap.decoding import check_decoder, decode
from prefixcap.losses import token_cross_entropy
from prefixcap.packing import Batch, pack
from prefixcap.store import StoreSplit
from prefixcap.training.cross_entropy import CaptionTraining
from prefixcap.training.distributed import unsharded
from prefixcap.training.rewards import Reward, self_critical_weights


class SelfCriticalTraining(CaptionTraining):
    """Trains a captioner to write captions with a high reward: samples better than an image's others get likelier.

    Logs `train_reward`, the mean reward of the samples, and what `CaptionTraining` logs.

    Args:
        captioner: the model, trained with cross-entropy before.
        val_split: see `CaptionTraining`, whose other options these are, too.
        reward: judges samples.
        draws: how many captions to sample for each image, at least 2.
        sample_tokens: most tokens of one, the end token included.
        temperature: divides the logits that samples are drawn from.
    """

    fewest_steps = 0  # it begins with a captioner that captions

    def __init__(
        self,
        captioner: Captioner,
        val_split: StoreSplit,
        reward: Reward,
        draws: int = 5,
        sample_tokens: int = 30,
        temperature: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(captioner, val_split, **options)
        check_decoder(
            "nucleus", draws, {"temperature": temperature, "max_tokens": sample_tokens}
        )  # better now than later
        self.reward, self.draws, self.sample_tokens, self.temperature = reward, draws, sample_tokens, temperature
        self._thread = ThreadPoolExecutor(1)

    def positions_of_an_image(self) -> int:
        return self.captioner.prefix_length + self.draws * (self.sample_tokens - 1)

    def training_step(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        """-1 / tokens * the sum over samples of (reward - mean reward of the image's others) * log-probability."""
        images = np.repeat(np.arange(len(batch.embeddings)), self.draws)
        embeddings = self.with_noise(batch).embeddings
        tokens = self._sample(embeddings)
        captions = [self.captioner.language_model.detokenize(row) for row in tokens]
        # The reward is computed while the language model reads the samples.
        rows = [batch.image_rows[image] for image in images]
        judged = self._thread.submit(self.reward, captions, rows, batch.embeddings[torch.from_numpy(images)])
        sampled = pack(embeddings, tokens, images, self.captioner.prefix_length, image_rows=batch.image_rows)
        sampled = sampled.to(self.device)
        states = self.captioner.states(sampled)
        rewards = judged.result()
        advantages = torch.from_numpy(self_critical_weights(rewards, self.draws)).float()
        weights = advantages.repeat_interleave(torch.tensor(list(map(len, tokens)))).to(self.device, non_blocking=True)
        head = self.captioner.language_model.head
        loss = token_cross_entropy(states, head.weight, head.bias, sampled.targets, weights)
        return {"loss": self._normalize_per_token(loss, sampled), "train_reward": torch.tensor(rewards.mean())}

    @torch.no_grad()
    def _sample(self, embeddings: Tensor) -> list[list[int]]:
        """Captions drawn from the language model, as many for each image, with the end token of those that have one."""
        training = self.captioner.training
        self.captioner.eval()
        with unsharded(self.captioner):
            prefix = self.captioner.prefix(embeddings).to(getattr(torch, self.captioner.language_model.dtype))
            drawn = decode(
                self.captioner.language_model, prefix, "nucleus", self.draws,
                top_p=1.0, temperature=self.temperature, max_tokens=self.sample_tokens,
            )  # fmt: skip
        self.captioner.train(training)
        end = self.captioner.language_model.eos_token_id
        return [
            [*caption, end] if len(caption) < self.sample_tokens else caption
            for of_image in drawn
            for caption in of_image
        ]
