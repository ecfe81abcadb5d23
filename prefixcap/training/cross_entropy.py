"""Training with cross-entropy (Mokady et al. 2021, equation 5)."""

import json
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
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from prefixcap.captioner import Captioner
from prefixcap.data import CaptionData
from prefixcap.errors import InputError
from prefixcap.metrics import cider
from prefixcap.noise import Noise
from prefixcap.packing import Batch
from prefixcap.store import StoreSplit
from prefixcap.training.distributed import FSDP2Strategy, all_gather_objects, all_reduce_mean, local_shard, unsharded
from prefixcap.training.loggers import log_samples
from prefixcap.training.metrics_log import MetricsLog
from prefixcap.training.optimizer import adamw
from prefixcap.training.reading_check import require_same_reading, undisturbed
from prefixcap.training.samples import Sample, samples_page
from prefixcap.utils.files import atomic_write_text
from prefixcap.utils.images import thumbnail

SAMPLES = 10  # images whose captions are written after each validation
WARMUP_STEPS, WARMUP_SHARE = 5000, 0.1  # the published recipe's, and at most so much of a run that is shorter


class CaptionTraining(L.LightningModule):
    """Trains a captioner's mapper, and its language model if that is tuned.

    Logs `train_loss`, `val_loss` (nats a caption token), `val_cider` (CIDEr of greedy captions of the validation
    images, in their order; 0 whatever these say where `prefixcap.metrics.cider_tells_nothing` of the references) and
    `val_distinct` (different captions among these, as a share of the images). After every validation the captions of
    the first of them are written to `samples/`, as JSON and as a page with the images, and logged with these.

    Args:
        captioner: the model.
        val_split: the validation images, in the order in which validation goes through them.
        learning_rate: peak of AdamW's learning rate.
        weight_decay: AdamW's.
        warmup_steps: the learning rate rises linearly over so many steps, then falls linearly to 0 at the last. None:
            5,000 as in the released code of ClipCap, but at most a tenth of all steps.
        max_tokens: most tokens of a validation caption.
        samples: folder for sample captions; None writes none.
        noise: done to embeddings before they are mapped. None: nothing.
        noise_in_validation: have it there, too, always the same: where texts stand in for images.
        adamw_options: other arguments of `torch.optim.AdamW`, e.g. `eps=1e-6`.

    Raises:
        InputError: the language model cannot be trained with captions, see `LanguageModel.check_trainable`, or, when
            training starts, `prefixcap.training.reading_check`.
    """

    fewest_steps = 100  # a mapper that begins with random weights has learned next to nothing by then
    strict_loading = (
        False  # a frozen language model's weights are not in the checkpoint; `load_checkpoint_state_dict` checks
    )

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
        self.val_loss = MeanMetric()
        self.val_captions: dict[int | str, str] = {}
        self.same_captions = False  # of all images of the last validation
        self._reads_rows = False  # it is known that the language model can
        self._tokens: list[Tensor] = []  # of each batch of the step, the mean over processes

    def configure_callbacks(self) -> list[L.Callback]:
        return [MetricsLog()]

    def on_fit_start(self) -> None:
        if isinstance(self.trainer.strategy, DeepSpeedStrategy) and self.trainer.accumulate_grad_batches > 1:
            raise InputError(
                "DeepSpeed sums gradients of batches by itself, so that captions of small ones would count more: set "
                "trainer.accumulate_grad_batches=1, or trainer=ddp or fsdp"
            )
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, CaptionData) and not self._reads_rows:
            self._require_same_reading(data)

    def _require_same_reading(self, data: CaptionData) -> None:
        embeddings, captions, positions = data.longest()
        with undisturbed(self.captioner), unsharded(self.captioner):
            prefix = self.captioner.prefix(embeddings if self.noise is None else self.noise(embeddings))
            most = max(positions, self.positions_of_an_image())
            require_same_reading(self.captioner.language_model, prefix, captions, most)
        self._reads_rows = True

    def positions_of_an_image(self) -> int:
        """The most positions of a row that an image takes with captions that are not in the data."""
        return 0

    def training_step(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        total = self.captioner.loss(self.with_noise(batch))
        loss = self._normalize_per_token(total, batch)
        return {"loss": loss, "train_loss": all_reduce_mean(total.detach() / self._tokens[-1])}

    def with_noise(self, batch: Batch, seed: int | None = None) -> Batch:
        """A batch with noise on its embeddings, drawn by torch's own generator, or by one with a seed."""
        if self.noise is None:
            return batch
        generator = None if seed is None else torch.Generator(self.device).manual_seed(seed)
        return replace(batch, embeddings=self.noise(batch.embeddings, generator))

    def _normalize_per_token(self, total: Tensor, batch: Batch) -> Tensor:
        """A sum over the caption tokens of a batch, divided so that gradients become those for each token of the step.

        Processes' gradients are averaged, so it is divided by the mean of their tokens. Of batches that are accumulated
        only the first is known yet: `on_before_optimizer_step` does the rest.
        """
        tokens = torch.full((), float(len(batch.targets)), device=self.device)
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
        # Lightning gives the first images again to some processes, if it cannot share them evenly.
        own = torch.tensor(batch.image_rows) % self.trainer.world_size == self.global_rank
        counted = own.to(self.device)[batch.images.flatten()[batch.logit_index]].float()  # (targets,)
        count = counted.sum()
        self.val_loss.update(self.captioner.loss(batch, counted) / count.clamp(min=1), weight=count)
        self.log("val_loss", self.val_loss, prog_bar=True, batch_size=len(batch.image_rows))
        with unsharded(self.captioner):
            captions = self.captioner.caption(
                batch.embeddings, "greedy", len(batch.image_rows), max_tokens=self.max_tokens
            )
        ids = [self.val_split.ids[row] for row in batch.image_rows]
        self.val_captions |= dict(zip(ids, captions, strict=True))

    def on_validation_epoch_end(self) -> None:
        found: dict[int | str, str] = {}
        for of_process in all_gather_objects(self.val_captions):
            found |= of_process
        references = self.val_split.references()
        captioned = {image_id: captions for image_id, captions in references.items() if captions and image_id in found}
        score = cider({image_id: found[image_id] for image_id in captioned}, captioned)
        self.log("val_cider", score, prog_bar=True, sync_dist=True)
        distinct = len(set(found.values()))
        self.log("val_distinct", distinct / len(found), sync_dist=True)
        self.same_captions = distinct == 1 < len(found)
        if self.samples is not None and self.trainer.is_global_zero:
            self._write_samples(self.samples, found, dict(islice(captioned.items(), SAMPLES)))
        self.val_captions = {}

    def _write_samples(
        self, folder: Path, captions: dict[int | str, str], references: dict[int | str, list[str]]
    ) -> None:
        """Write the captions of the images of `references` to the folder, and tell them to the loggers."""
        files = dict(zip(self.val_split.ids, self.val_split.files, strict=True))
        samples = [
            Sample(image_id, captions[image_id], of_image, thumbnail(files[image_id], 224))
            for image_id, of_image in references.items()
        ]
        kept = [{"image_id": of.image_id, "caption": of.caption, "references": of.references} for of in samples]
        page = samples_page(f"Captions after step {self.global_step:,}", samples)
        file = folder / f"step-{self.global_step:07d}"
        atomic_write_text(file.with_suffix(".json"), json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
        atomic_write_text(file.with_suffix(".html"), page)
        log_samples(self.trainer.loggers, samples, page, self.global_step - 1)  # the step of this validation's metrics

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
                f"training takes {total} steps, and optimizer.warmup_steps={warmup}: the learning rate ends "
                f"at {total / warmup:.0%} of its peak. Fewer warm-up steps may be what you want"
            )
        if total < self.fewest_steps:
            rank_zero_warn(
                f"too few steps ({total}) to learn to caption images: raise trainer.max_epochs or trainer.min_steps, "
                "or make batch_size smaller"
            )
        schedule = LambdaLR(optimizer, lambda step: linear_warmup_and_decay(step, warmup, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["prefixcap"] = self.captioner.describe()
        own = {f"captioner.{name}" for name in self.captioner.checkpoint_state_dict()}
        checkpoint["state_dict"] = {name: weight for name, weight in checkpoint["state_dict"].items() if name in own}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "state_dict" in checkpoint:  # strategies that shard a model take it out, and load it by themselves
            weights = {name.removeprefix("captioner."): weight for name, weight in checkpoint["state_dict"].items()}
            self.captioner.load_checkpoint_state_dict(weights, "the checkpoint to resume from")


def linear_warmup_and_decay(step: int, warmup: int, total: int) -> float:
    """Share of the peak learning rate at a step: from 0 up to 1 over `warmup` steps, then down to 0 at `total`."""
    if step < warmup:
        return step / warmup
    return max(0.0, (total - step) / max(1, total - warmup))


def trainable_parameters(captioner: Captioner) -> tuple[int, int]:
    """How many parameters are trained, and how many are frozen."""
    counts = [0, 0]
    for weight in captioner.parameters():
        counts[0 if weight.requires_grad else 1] += weight.numel()
    return counts[0], counts[1]
