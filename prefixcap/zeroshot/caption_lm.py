"""A language model that writes captions of nothing in particular: fine-tuned on captions alone, for MAGIC.

Cross-entropy, and the contrastive loss of SimCTG (Su et al., "A Contrastive Framework for Neural Text Generation",
NeurIPS 2022), as the released code of MAGIC (https://github.com/yxuansu/MAGIC) fine-tunes GPT-2: 20,000 steps (COCO;
10,000 for Flickr30k) of 128 captions, validated every 500 (250); the lowest validation loss wins. Two things differ. It
adds a start token to GPT-2's words, which it learns from random numbers; here captions follow the begin token that the
language model knows already. And it validates on the captions of the test images; here on those of the validation set.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric
from transformers import get_linear_schedule_with_warmup

from prefixcap.data.shuffle import ShuffledSampler
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel, tokenize_captions
from prefixcap.losses import token_cross_entropy
from prefixcap.store.reader import Column
from prefixcap.training.metrics_log import MetricsLog
from prefixcap.training.optimizer import adamw
from prefixcap.training.reading_check import require_same_reading, undisturbed
from prefixcap.utils.files import atomic_write_folder
from prefixcap.zeroshot.inputs import start_token

Texts = Sequence[str] | Column
Batch = tuple[Tensor, Tensor, Tensor]  # (rows, length) read tokens, (rows, length) targets, (rows,) lengths


def contrastive_loss(hidden: Tensor, lengths: Tensor, margin: float = 0.5) -> Tensor:
    """SimCTG's loss: tokens of a text are to be less like each other than like themselves, by a margin.

    The mean of max(0, margin - s(h_i, h_i) + s(h_i, h_j)) over all pairs i != j of positions of the same text, s being
    the cosine; as in the released code over the pairs of the batch, so that long texts count more.

    Args:
        hidden: (rows, length, width) last hidden states.
        lengths: (rows,) of the texts; what is behind is padding.
        margin: rho, between 0.0 and 1.0.
    """
    states = F.normalize(hidden.float(), dim=-1)
    similarity = states @ states.transpose(1, 2)  # (rows, length, length)
    own = similarity.diagonal(dim1=1, dim2=2).unsqueeze(2)
    places = torch.arange(hidden.shape[1], device=hidden.device)
    inside = places < lengths.unsqueeze(1)
    pairs = inside.unsqueeze(1) & inside.unsqueeze(2) & (places != places.unsqueeze(1))
    return ((margin - own + similarity).relu() * pairs).sum() / pairs.sum().clamp(min=1)


class CaptionTexts(L.LightningDataModule):
    """Batches of captions, each behind the start token: random ones to train on, all in their order to validate on.

    Args:
        language_model: whose tokenizer and context the batches must fit.
        train: captions, e.g. `FeatureStore(…).split("train").captions`, which stay on disk.
        val: captions.
        batch_size: captions of a batch.
        max_caption_tokens: longer captions are cut; the end token follows all the same.
        seed: of the order.

    Raises:
        InputError: there are no captions, or too many tokens of one for the language model.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        train: Texts,
        val: Texts,
        batch_size: int = 128,
        max_caption_tokens: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for use, captions in (("train on", train), ("validate on", val)):
            if not len(captions):
                raise InputError(f"there are no captions to {use}")
        room = math.inf if language_model.context is None else language_model.context - 1
        if batch_size < 1 or not 1 <= max_caption_tokens <= room:
            raise InputError(
                f"batch_size={batch_size} must be at least 1, and max_caption_tokens={max_caption_tokens} between 1 "
                f"and {room}, what language model '{language_model.name}' has room for"
            )
        self.tokenizer, self.start = language_model.tokenizer, start_token(language_model)
        self.captions = {"train": _by_rows(train), "val": _by_rows(val)}
        self.batch_size, self.max_caption_tokens, self.seed = batch_size, max_caption_tokens, seed
        self._size_before = batch_size

    def state_dict(self) -> dict[str, Any]:
        """What the order of captions depends on, for a checkpoint."""
        return {"batch_size": self.batch_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave: within an epoch, a run goes on only with the same batches."""
        self._size_before = state_dict["batch_size"]

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader("train", ShuffledSampler(len(self.captions["train"]), self.seed, self._taken))

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader("val", None)

    def _taken(self) -> int:
        """Captions of this epoch that were drawn before a run was stopped, from where it now goes on."""
        batches = 0 if self.trainer is None else self.trainer.fit_loop.batch_idx + 1
        if batches and self._size_before != self.batch_size:
            raise InputError(f"the run was stopped within an epoch: go on with batch_size={self._size_before}")
        return batches * self.batch_size

    def _loader(self, split: str, sampler: ShuffledSampler | None) -> DataLoader[Batch]:
        captions = self.captions[split]
        return DataLoader(
            range(len(captions)),  # type: ignore[arg-type]
            self.batch_size,
            sampler=sampler,
            collate_fn=lambda rows: self.batch(captions[np.array(rows)]),
            generator=torch.Generator().manual_seed(self.seed),  # torch's own would be where dropout draws, too
        )

    def batch(self, captions: Sequence[str]) -> Batch:
        """Captions -> what is read, what is to be predicted from it, and how much of each row is no padding."""
        tokens = self.tokens(captions)
        rows = pad_sequence([torch.tensor(row) for row in tokens], batch_first=True, padding_value=self.start)
        return rows[:, :-1], rows[:, 1:], torch.tensor([len(row) - 1 for row in tokens])

    def tokens(self, captions: Sequence[str]) -> list[list[int]]:
        """The start token, those of a caption as far as they are read, and the end token; of each caption."""
        most = self.max_caption_tokens
        return [[self.start, *row[:-1][:most], row[-1]] for row in tokenize_captions(self.tokenizer, list(captions))]


class CaptionLMTraining(L.LightningModule):
    """Fine-tunes a language model on captions. Logs `train_loss` and `val_loss`, nats a token, end tokens included, and
    `contrastive_loss`.

    Args:
        language_model: loaded with tuning "full", or "lora".
        margin: of the contrastive loss, which is added to the cross-entropy; None: it is not.
        learning_rate: peak of AdamW's learning rate.
        weight_decay: AdamW's.
        warmup_share: the learning rate rises linearly over this share of all steps, then falls linearly to 0.
        adamw_options: other arguments of `torch.optim.AdamW`, e.g. `eps=1e-6`.

    Raises:
        InputError: the language model cannot be trained, or a value makes no sense.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        margin: float | None = 0.5,
        learning_rate: float = 2e-5,
        weight_decay: float = 0.0,
        warmup_share: float = 0.1,
        **adamw_options: Any,
    ) -> None:
        super().__init__()
        if language_model.tuning == "frozen":
            raise InputError(f"language model '{language_model.name}' is frozen: load it with tuning='full' or 'lora'")
        language_model.check_trainable()
        if margin is not None and not 0 <= margin <= 1:
            raise InputError(f"margin must lie between 0.0 and 1.0, or be null for cross-entropy alone, not {margin}")
        if not 0 < learning_rate < math.inf or not weight_decay >= 0 or not 0 <= warmup_share <= 1:
            raise InputError(
                "learning_rate must be above 0.0, weight_decay at least 0.0 and warmup_share between 0.0 and 1.0, "
                f"not learning_rate={learning_rate} weight_decay={weight_decay} warmup_share={warmup_share}"
            )
        self.language_model = language_model
        self.margin, self.learning_rate = margin, learning_rate
        self.weight_decay, self.warmup_share, self.adamw_options = weight_decay, warmup_share, adamw_options
        self.val_loss = MeanMetric(nan_strategy=math.inf)  # by itself it drops a NaN

    def configure_callbacks(self) -> list[Callback]:
        return [MetricsLog()]

    def on_fit_start(self) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, CaptionTexts):
            lm, captions = self.language_model, data.captions["train"]
            tokens = data.tokens(captions[np.array([0, len(captions) - 1])])
            with undisturbed(lm):
                prefix = lm.embed(torch.tensor([tokens[0][:1]] * 2, device=self.device))  # the start token
                require_same_reading(lm, prefix.detach(), [row[1:] for row in tokens], max(map(len, tokens)))

    def read(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross-entropy in nats a token, and the (rows, length, width) last hidden states that it comes from."""
        read, targets, lengths = batch
        lm = self.language_model
        places = torch.arange(read.shape[1], device=read.device)
        visible = (places <= places.unsqueeze(1)).expand(len(read), 1, -1, -1)  # padding is behind, where nobody looks
        hidden = lm.hidden_states(lm.embed(read), places.expand_as(read), visible)
        inside = places < lengths.unsqueeze(1)
        nats = token_cross_entropy(hidden[inside], lm.head.weight, lm.head.bias, targets[inside])
        return nats / lengths.sum(), hidden

    def training_step(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        nats, hidden = self.read(batch)
        if self.margin is None:
            return {"loss": nats, "train_loss": nats.detach()}
        contrastive = contrastive_loss(hidden, batch[2], self.margin)
        return {"loss": nats + contrastive, "train_loss": nats.detach(), "contrastive_loss": contrastive.detach()}

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        self.val_loss.update(self.read(batch)[0], weight=batch[2].sum())
        self.log("val_loss", self.val_loss, prog_bar=True, batch_size=len(batch[0]))

    def configure_optimizers(self) -> Any:
        trained = [weight for weight in self.language_model.parameters() if weight.requires_grad]
        optimizer = adamw(trained, self.learning_rate, self.weight_decay, **self.adamw_options)
        total = int(self.trainer.estimated_stepping_batches)
        warmup = int(self.warmup_share * total)
        schedule = get_linear_schedule_with_warmup(optimizer, warmup, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["prefixcap"] = {"language_model": self.language_model.describe()}


class BestFolder(Callback):
    """Keeps the weights with the lowest validation loss as a folder that `load_language_model` opens.

    Args:
        folder: written whole whenever a validation is the best so far.

    Attributes:
        loss: the lowest so far.

    Raises:
        InputError: the validation loss is NaN or infinite.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.loss = folder, math.inf

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loss = state_dict["loss"]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss = float(trainer.callback_metrics["val_loss"])
        if not math.isfinite(loss):
            raise InputError(
                f"the validation loss is NaN or infinite after step {trainer.global_step}: lower the learning rate"
            )
        if loss >= self.loss:
            return
        self.loss = loss
        if trainer.is_global_zero:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write_folder(self.folder) as temporary:
                pl_module.language_model.save_pretrained(temporary)  # type: ignore[operator, union-attr]


def _by_rows(captions: Texts) -> Any:
    """Captions that an array of rows can be asked of."""
    return captions if isinstance(captions, Column) else np.array(captions, dtype=object)
