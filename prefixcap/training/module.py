"""The Lightning module that trains a captioner: what a step, a validation and a checkpoint do.

Shapes: B images of a batch, D width of their embeddings, T target tokens, H width of the last hidden states.
"""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from prefixcap.captioner import Captioner
from prefixcap.data import CaptionData
from prefixcap.errors import InputError, OptionError
from prefixcap.metrics import cider
from prefixcap.noise import Noise
from prefixcap.packing import Batch
from prefixcap.store import StoreSplit
from prefixcap.training.distributed import FSDP2Strategy, all_gather_objects, all_reduce_mean, local_shard, unsharded
from prefixcap.training.low_precision import LowPrecisionWeights
from prefixcap.training.metrics_log import MetricsLog
from prefixcap.training.objectives import CrossEntropy, Objective
from prefixcap.training.optimizer import adamw, linear_schedule
from prefixcap.training.reading_check import require_same_reading, undisturbed
from prefixcap.training.samples import Sample, write_samples
from prefixcap.utils.images import thumbnail

NUM_SAMPLES = 10  # images whose captions are written after each validation
WARMUP_STEPS, WARMUP_SHARE = 5000, 0.1  # those of ClipCap's released code, but at most this share of a shorter run


class CaptionTraining(L.LightningModule):
    """Trains a captioner's mapper, and its language model if that is tuned.

    Logs what the objective logs, by default `train_loss`, and of each validation `val_loss` (cross-entropy, whatever
    the objective; both in nats a token), `val_cider` (CIDEr of greedy captions of the validation images; 0 for any
    captions where `prefixcap.metrics.cider_tells_nothing` is true of the references) and `val_distinct` (different
    captions, as a share of the images). After each validation, the captions of the first images are written to
    `samples/`, as JSON and as a page with the images, and given to the loggers.

    Args:
        captioner: the model.
        val_split: the validation images, in the order in which validation goes through them.
        learning_rate: peak learning rate of AdamW.
        weight_decay: weight decay of AdamW.
        warmup_steps: steps over which the learning rate rises linearly; it then falls linearly to 0 at the last step.
            None: 5,000 as in ClipCap's released code, but at most a tenth of all steps.
        max_tokens: longest validation caption, in tokens.
        samples: folder for sample captions; None: none are written.
        noise: noise added to embeddings before they are mapped; None: none.
        noise_in_validation: add it in validation, too, always the same: where captions stand in for images.
        objective: what training minimizes; None: `CrossEntropy`.
        adamw_options: other arguments of `torch.optim.AdamW`, e.g. `eps=1e-6`.

    Raises:
        InputError: the language model cannot be trained on captions (`LanguageModel.check_trainable`), or, when
            training starts, it does not read packed captions as it reads single ones
            (`prefixcap.training.reading_check`).
    """

    # A frozen language model's weights are not in checkpoints; `load_checkpoint_state_dict` checks the others.
    strict_loading = False

    def __init__(
        self,
        captioner: Captioner,
        val_split: StoreSplit,
        learning_rate: float = 2e-5,
        weight_decay: float = 0.01,
        warmup_steps: int | None = None,
        max_tokens: int = 67,
        samples: Path | None = None,
        noise: Noise | None = None,
        noise_in_validation: bool = True,
        objective: Objective | None = None,
        **adamw_options: Any,
    ) -> None:
        super().__init__()
        captioner.language_model.check_trainable()
        self.captioner = captioner
        self.val_split = val_split
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.adamw_options = adamw_options
        self.max_tokens = max_tokens
        self.samples = samples
        self.noise, self.noise_in_validation = noise, noise_in_validation
        self.objective = CrossEntropy(captioner) if objective is None else objective
        self.val_loss = MeanMetric()
        self.val_captions: dict[int | str, str] = {}
        self.same_captions = False  # whether all images had one and the same caption in the last validation
        self._reading_checked = False
        self._tokens: list[Tensor] = []  # target tokens of each batch of the step, the mean over processes

    def configure_callbacks(self) -> list[L.Callback]:
        return [MetricsLog(), LowPrecisionWeights(self.captioner.language_model)]

    def on_fit_start(self) -> None:
        if self.noise is not None and self.noise.offset is not None:
            self.noise = replace(self.noise, offset=self.noise.offset.to(self.device))
        if isinstance(self.trainer.strategy, DeepSpeedStrategy) and self.trainer.accumulate_grad_batches > 1:
            raise OptionError(
                "DeepSpeed sums gradients of batches by itself, so that captions of small ones would count more "
                "(not so with ddp or fsdp)",
                accumulate_grad_batches=1,
            )
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, CaptionData) and not self._reading_checked:
            self._require_room(0 if data.val_prompts is None else data.val_prompts.longest)
            self._require_same_reading(data)

    def _require_room(self, prompt: int) -> None:
        """Refuse captions in validation that would not fit after a prompt of so many tokens: training would be lost."""
        language_model, prefix = self.captioner.language_model, self.captioner.prefix_length
        if language_model.context is None or prefix + prompt + self.max_tokens <= language_model.context:
            return
        room = language_model.context - prefix - prompt
        given = f"a prefix of {prefix}" + (f" and the longest prompt of {prompt}" if prompt else "")
        problem = (
            f"captions of up to {self.max_tokens} tokens in validation do not fit: with {given}, language model "
            f"'{language_model.name}' has room for {room}"
        )
        if room < 1:
            raise InputError(f"{problem}: cut prompts with max_prompt_tokens")
        raise OptionError(problem, max_tokens=room)

    def _require_same_reading(self, data: CaptionData) -> None:
        embeddings, captions, positions, texts = data.longest()
        language_model, sampled = self.captioner.language_model, self.objective.max_positions
        prompts = [language_model.tokenize_prompt(text) for text in texts] or None
        with undisturbed(self.captioner), unsharded(self.captioner):
            prefix, _ = self.captioner.prefix_and_memory(self._noisy(embeddings, None))
            longest = max(positions, sampled + data.longest_prompt if sampled else 0)
            require_same_reading(language_model, prefix, captions, longest, prompts, self.captioner.prompts_first)
        self._reading_checked = True

    def training_step(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        total, tokens = self.total_loss(batch)
        loss = self._normalize_per_token(total, tokens)
        return {"loss": loss, **self.objective.metrics(all_reduce_mean(total.detach() / self._tokens[-1]))}

    def total_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The objective's sum () over the target tokens of a batch, and their number ()."""
        batch = self.objective.prepare(batch, self.with_noise(batch))
        states = self.captioner.states(batch)  # (T, H)
        losses = self.objective(states, batch)  # (T,), or their weighted sum ()
        tokens = batch.weights.sum(dtype=torch.float32)  # with precision bf16-true, bfloat16 would round it
        return (losses * batch.weights).sum() if losses.ndim else losses, tokens

    def with_noise(self, batch: Batch, seed: int | None = None) -> Batch:
        """The batch with noise on its (B, D) embeddings, drawn from torch's global generator or one with `seed`."""
        if self.noise is None:
            return batch
        generator = None if seed is None else torch.Generator(self.device).manual_seed(seed)
        return replace(batch, embeddings=self._noisy(batch.embeddings, generator))

    def _noisy(self, embeddings: Tensor, generator: torch.Generator | None) -> Tensor:
        """Embeddings with noise; those of retrieved captions, behind the first, stay as they are."""
        if self.noise is None:
            return embeddings
        if not self.captioner.mapper.retrieved:
            return self.noise(embeddings, generator)
        return torch.cat((self.noise(embeddings[:, :1], generator), embeddings[:, 1:]), dim=1)

    def _normalize_per_token(self, total: Tensor, tokens: Tensor) -> Tensor:
        """A batch's sum over target tokens, divided so that each token of the step has the same weight in the gradient.

        Gradients are averaged over processes, so the sum is divided by the mean of their token counts. Of the batches
        that are accumulated only the first is known yet: `on_before_optimizer_step` does the rest.
        """
        self._tokens.append(all_reduce_mean(tokens))
        return total / self._tokens[0]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if (batches := self.trainer.accumulate_grad_batches) > 1:
            scale = batches * self._tokens[0] / sum(self._tokens)
            for weight in self.captioner.parameters():
                if weight.grad is not None:
                    local_shard(weight.grad).mul_(scale)
        self._tokens = []

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        if self.noise_in_validation:
            batch = self.with_noise(batch, seed=batch.image_rows[0])
        # To give all processes as many images, Lightning repeats the first ones: each counts only in one process.
        counts = torch.tensor(batch.image_rows) % self.trainer.world_size == self.global_rank  # (B,)
        weights = counts.to(self.device)[batch.images.flatten()[batch.logit_index]].float()  # (T,)
        tokens = weights.sum()
        self.val_loss.update(self.captioner.loss(batch, weights) / tokens.clamp(min=1), weight=tokens)
        self.log("val_loss", self.val_loss, prog_bar=True, batch_size=len(batch.image_rows))
        with unsharded(self.captioner):
            prompts: dict[str, Any] = {"prompts": batch.prompts} if batch.prompts else {}
            captions = self.captioner.caption(
                batch.embeddings, "greedy", len(batch.image_rows), max_tokens=self.max_tokens, **prompts
            )
        ids = [self.val_split.ids[row] for row in batch.image_rows]
        self.val_captions |= dict(zip(ids, captions, strict=True))

    def on_validation_epoch_end(self) -> None:
        captions: dict[int | str, str] = {}
        for process_captions in all_gather_objects(self.val_captions):
            captions |= process_captions
        self.val_captions = {}
        references = {
            image: texts for image, texts in self.val_split.references().items() if texts and image in captions
        }
        self.log(
            "val_cider",
            cider({image: captions[image] for image in references}, references),
            prog_bar=True,
            sync_dist=True,
        )
        distinct = len(set(captions.values()))
        self.log("val_distinct", distinct / len(captions), sync_dist=True)
        self.same_captions = distinct == 1 < len(captions)
        if self.samples is not None and self.trainer.is_global_zero:
            files = dict(zip(self.val_split.ids, self.val_split.files, strict=True))
            samples = [
                Sample(image, captions[image], texts, thumbnail(files[image], 224))
                for image, texts in islice(references.items(), NUM_SAMPLES)
            ]
            write_samples(self.samples, samples, self.global_step, self.trainer.loggers)

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, FSDP2Strategy):
            self.trainer.strategy.shard(self.captioner)

    def configure_optimizers(self) -> Any:
        trained = [weight for weight in self.captioner.parameters() if weight.requires_grad]
        optimizer = adamw(trained, self.learning_rate, self.weight_decay, **{"fused": True} | self.adamw_options)
        optimizer._step_supports_amp_scaling = False  # or Lightning could not clip its gradients in mixed precision
        total = int(self.trainer.estimated_stepping_batches)
        warmup = min(WARMUP_STEPS, int(WARMUP_SHARE * total)) if self.warmup_steps is None else self.warmup_steps
        if warmup > total:
            rank_zero_warn(
                f"training takes {total} steps, and warmup_steps={warmup}: the learning rate ends "
                f"at {total / warmup:.0%} of its peak. Fewer warm-up steps may be what you want"
            )
        if total < self.objective.fewest_steps:
            rank_zero_warn(
                f"too few steps ({total}) to learn to caption images: raise the trainer's max_epochs or min_steps, or "
                "lower batch_size"
            )
        schedule = linear_schedule(optimizer, warmup, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["prefixcap"] = self.captioner.describe()
        saved = {f"captioner.{name}" for name in self.captioner.checkpoint_state_dict()}
        checkpoint["state_dict"] = {name: weight for name, weight in checkpoint["state_dict"].items() if name in saved}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "state_dict" in checkpoint:  # strategies that shard the model take it out, and load it themselves
            weights = {name.removeprefix("captioner."): weight for name, weight in checkpoint["state_dict"].items()}
            self.captioner.load_checkpoint_state_dict(weights, "the checkpoint to resume from")


def trainable_parameters(captioner: Captioner) -> tuple[int, int]:
    """The number of parameters that are trained, and of those that are frozen."""
    counts = [0, 0]
    for weight in captioner.parameters():
        counts[0 if weight.requires_grad else 1] += weight.numel()
    return counts[0], counts[1]
