"""Self-critical sequence training, SCST (Rennie et al. 2017), with the mean reward of an image's other samples as the
baseline (Luo 2020, "A Better Variant of Self-Critical Sequence Training").

Shapes: B images of a batch, K samples an image, D width of the encoder's embeddings, T target tokens (those of all
B · K samples), H width of the last hidden states.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefixcap.captioner import Captioner
from prefixcap.captioner.beside import decoder_inputs, with_prompts
from prefixcap.data import CaptionData
from prefixcap.decoding import check_decoder, decode
from prefixcap.errors import InputError
from prefixcap.losses import token_cross_entropy
from prefixcap.packing import Batch, pack
from prefixcap.training.distributed import unsharded
from prefixcap.training.objectives.base import Objective
from prefixcap.training.rewards import CiderReward, ClipReward, Reward, self_critical_weights

REWARDS: dict[str, Callable[[Captioner, CaptionData], Reward]] = {
    "cider": lambda captioner, data: CiderReward(list(data.train_split.references().values())),
    "clip": lambda captioner, data: ClipReward(captioner),
}


class SelfCritical(Objective):
    """The expected reward of sampled captions: those that are better than an image's other samples get more likely.

    Logs `train_reward`, the mean reward of the samples. It is for a captioner that already captions, after training
    with cross-entropy.

    Args:
        captioner: the model that is trained.
        data: its training data, whose captions a reward may need; None if `reward` is not a name.
        reward: how good captions are: a name in `REWARDS`, or a function, see `Reward`.
        draws: K, captions sampled for each image, at least 2.
        sample_tokens: most tokens of a sample, the end token included.
        temperature: divides the logits that samples are drawn from.

    Raises:
        InputError: there is no such reward, it cannot judge these images, or an option is out of its range.
    """

    fewest_steps = 0  # it begins with a captioner that captions

    def __init__(
        self,
        captioner: Captioner,
        data: CaptionData | None = None,
        reward: str | Reward = "cider",
        draws: int = 5,
        sample_tokens: int = 30,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(captioner, data)
        check_decoder("nucleus", draws, {"temperature": temperature, "max_tokens": sample_tokens})
        if isinstance(reward, str):
            if reward not in REWARDS:
                raise InputError(f"unknown reward '{reward}': choose one of {', '.join(REWARDS)}")
            if data is None:
                raise InputError(f"reward '{reward}' needs the training data: SelfCritical(captioner, data, ...)")
            reward = REWARDS[reward](captioner, data)
        self.reward, self.draws, self.sample_tokens, self.temperature = reward, draws, sample_tokens, temperature
        self.max_positions = captioner.prefix_length + draws * (sample_tokens - 1)
        self._thread = ThreadPoolExecutor(1)
        self._sample_lengths: list[int] = []
        self._rewards: Future[NDArray[np.float64]]  # of the last batch's samples

    def prepare(self, batch: Batch, noisy: Batch) -> Batch:
        """K captions sampled for each image, in place of those in the data. They are judged on another thread while
        the language model reads them."""
        images = np.repeat(np.arange(len(batch.embeddings)), self.draws)  # (B·K,) image of each sample
        prompts = [self.captioner.language_model.tokenize_prompt(text) for text in batch.prompts]
        tokens = self.sample(noisy.embeddings, prompts or None)
        captions = [self.captioner.language_model.detokenize(row) for row in tokens]
        rows = [batch.image_rows[image] for image in images]
        embeddings = batch.embeddings[torch.from_numpy(images)]  # (B·K, D)
        self._rewards = self._thread.submit(self.reward, captions, rows, embeddings)
        self._sample_lengths = list(map(len, tokens))
        sampled = pack(
            noisy.embeddings, tokens, images, self.captioner.prefix_length, image_rows=batch.image_rows,
            prompts=prompts or None, prompts_first=self.captioner.prompts_first,
        )  # fmt: skip
        sampled.prompts = batch.prompts
        return sampled.to(self.captioner.device)

    def __call__(self, states: Tensor, batch: Batch) -> Tensor:
        """(T, H) last hidden states -> the sum () over samples of advantage * negative log-probability.

        The advantage is the reward less the mean reward of the image's other samples. The gradient is the policy
        gradient (Rennie et al. 2017, equation 7).
        """
        advantages = torch.from_numpy(self_critical_weights(self._rewards.result(), self.draws)).float()  # (B·K,)
        weights = advantages.repeat_interleave(torch.tensor(self._sample_lengths))  # (T,)
        head = self.captioner.language_model.head
        return token_cross_entropy(
            states, head.weight, head.bias, batch.targets, weights.to(states.device, non_blocking=True)
        )

    def metrics(self, loss: Tensor) -> dict[str, Tensor]:
        """The mean reward; the loss itself says nothing, as rewards are compared within an image."""
        return {"train_reward": torch.tensor(self._rewards.result().mean())}

    @torch.no_grad()
    def sample(self, embeddings: Tensor, prompts: Sequence[list[int]] | None = None) -> list[list[int]]:
        """Captions drawn from the language model at the temperature, without dropout.

        Args:
            embeddings: (B, D) of the images.
            prompts: token ids of each image's prompt; None: no image has one.

        Returns:
            Token ids of B · K captions, those of an image next to each other; each ends with the end token, unless it
            was cut.
        """
        captioner, language_model = self.captioner, self.captioner.language_model
        training = captioner.training
        captioner.eval()
        with unsharded(captioner):
            prefix = with_prompts(
                captioner, decoder_inputs(captioner, embeddings), prompts or [[]] * len(embeddings), []
            )
            drawn = decode(
                language_model, prefix, "nucleus", self.draws, top_p=1.0, temperature=self.temperature,
                max_tokens=self.sample_tokens,
            )  # fmt: skip
        captioner.train(training)
        end = [language_model.eos_token_id]
        return [
            caption + end if len(caption) < self.sample_tokens else caption for samples in drawn for caption in samples
        ]
