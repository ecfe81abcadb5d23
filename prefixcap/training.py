"""Training with cross-entropy (Mokady et al. 2021, equation 5)."""

import json
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from prefixcap.captioner import IGNORE, Captioner
from prefixcap.data import Batch
from prefixcap.files import write_text_whole
from prefixcap.metrics import cider
from prefixcap.store import StoreSplit


class CaptionTraining(L.LightningModule):
    """Trains a captioner's mapper, and its language model if that is tuned.

    Logs `train_loss`, `val_loss` (nats a caption token) and `val_cider` (CIDEr of greedy captions of the validation
    images), and writes the captions of the first validation images to `samples/` after every validation.

    Args:
        captioner: the model.
        val_split: the validation images, in the order in which validation goes through them.
        learning_rate: peak of AdamW's learning rate.
        weight_decay: AdamW's.
        warmup_steps: the learning rate rises linearly over so many steps, then falls linearly to 0 at the last.
        max_tokens: most tokens of a validation caption.
        samples: folder for sample captions; None writes none.
    """

    strict_loading = False  # a frozen language model's weights are not in the checkpoint; `load_own_weights` checks

    def __init__(
        self,
        captioner: Captioner,
        val_split: StoreSplit,
        learning_rate: float = 2e-5,
        weight_decay: float = 0.01,
        warmup_steps: int = 5000,
        max_tokens: int = 67,
        samples: Path | None = None,
    ) -> None:
        super().__init__()
        self.captioner = captioner
        self.val_split = val_split
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.max_tokens = max_tokens
        self.samples = samples
        self.val_loss = MeanMetric()
        self.val_captions: dict[int | str, str] = {}

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        losses, count = self._losses(batch)
        loss = losses.sum() / count
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch.tokens))
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        losses, count = self._losses(batch)
        self.val_loss.update(losses.sum() / count, weight=count)
        self.log("val_loss", self.val_loss, prog_bar=True, batch_size=len(batch.tokens))
        captions = self.captioner.caption(batch.embeddings, "greedy", len(batch.rows), max_tokens=self.max_tokens)
        ids = [self.val_split.ids[row] for row in batch.rows]
        self.val_captions |= dict(zip(ids, captions, strict=True))

    def on_validation_epoch_end(self) -> None:
        references = self.val_split.references()
        captioned = {image_id: references[image_id] for image_id in self.val_captions if references[image_id]}
        score = cider({image_id: self.val_captions[image_id] for image_id in captioned}, captioned)
        self.log("val_cider", score, prog_bar=True)
        if self.samples is not None:
            sample = [
                {"image_id": image_id, "caption": self.val_captions[image_id], "references": captions}
                for image_id, captions in list(captioned.items())[:10]
            ]
            text = json.dumps(sample, indent=1, ensure_ascii=False)
            write_text_whole(self.samples / f"step-{self.global_step:07d}.json", text + "\n")
        self.val_captions = {}

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses of all caption tokens, and how many there are."""
        embeddings = batch.embeddings[batch.image_of_caption]
        return self.captioner.token_losses(embeddings, batch.tokens), (batch.tokens != IGNORE).sum()

    def configure_optimizers(self) -> Any:
        trained = [weight for weight in self.captioner.parameters() if weight.requires_grad]
        optimizer = AdamW(trained, lr=self.learning_rate, weight_decay=self.weight_decay)
        total = int(self.trainer.estimated_stepping_batches)
        schedule = LambdaLR(optimizer, lambda step: linear_warmup_and_decay(step, self.warmup_steps, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["prefixcap"] = self.captioner.describe()
        checkpoint["state_dict"] = {
            f"captioner.{name}": weight for name, weight in self.captioner.own_weights().items()
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        weights = {name.removeprefix("captioner."): weight for name, weight in checkpoint["state_dict"].items()}
        self.captioner.load_own_weights(weights, "the checkpoint to resume from")


def best_and_last(folder: Path) -> tuple[ModelCheckpoint, ModelCheckpoint]:
    """Callbacks that keep `best.ckpt`, by CIDEr on the validation images, and `last.ckpt`, of the latest epoch."""
    best = ModelCheckpoint(folder, "best", monitor="val_cider", mode="max", enable_version_counter=False)
    # `save_last` would write only when there is a new best one.
    last = ModelCheckpoint(folder, "last", enable_version_counter=False)
    return best, last


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
