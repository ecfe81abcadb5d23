"""Fine-tune a language model on captions only, without images, for MAGIC.

The loss is cross-entropy plus the contrastive loss of SimCTG (Su et al., "A Contrastive Framework for Neural Text
Generation", NeurIPS 2022), as in the released code of MAGIC (https://github.com/yxuansu/MAGIC): 20,000 steps (COCO;
10,000 for Flickr30k) of 128 captions, validated every 500 (250) steps; the lowest validation loss wins. Two things
differ. The released code adds a new start token to GPT-2's vocabulary; here captions follow the begin token that the
language model already knows. And it validates on captions of test images; here on those of the validation split.

Shapes: R rows of a batch, one for each caption, L tokens of the longest, H width of the last hidden states.
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

from prefixcap.data.shuffle import ShuffledSampler
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel, tokenize_captions
from prefixcap.losses import token_cross_entropy
from prefixcap.store.reader import Column
from prefixcap.training.metrics_log import MetricsLog
from prefixcap.training.optimizer import adamw, linear_schedule
from prefixcap.training.reading_check import require_same_reading, undisturbed
from prefixcap.utils.files import atomic_write_folder
from prefixcap.zeroshot.inputs import start_token

Texts = Sequence[str] | Column
Batch = tuple[Tensor, Tensor, Tensor]  # (R, L) input ids, (R, L) targets, (R,) lengths


def contrastive_loss(hidden: Tensor, lengths: Tensor, margin: float = 0.5) -> Tensor:
    """SimCTG's loss: the states of different tokens of a text should differ by at least a margin of cosine.

    It is the mean of max(0, margin - s(h_i, h_i) + s(h_i, h_j)) over all pairs i != j of positions of the same text,
    where s is the cosine; as in the released code over all pairs of the batch, so that long texts count more.

    Args:
        hidden: (R, L, H) last hidden states.
        lengths: (R,) of the texts; the rest is padding.
        margin: rho, between 0.0 and 1.0.

    Returns:
        A scalar.

    Examples:
        >>> hidden = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
        >>> contrastive_loss(hidden, torch.tensor([2]))  # the two tokens have the same state
        tensor(0.5000)
    """
    states = F.normalize(hidden.float(), dim=-1)
    similarity = states @ states.transpose(1, 2)  # (R, L, L)
    own = similarity.diagonal(dim1=1, dim2=2).unsqueeze(2)  # (R, L, 1)
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    inside = positions < lengths.unsqueeze(1)  # (R, L)
    pairs = inside.unsqueeze(1) & inside.unsqueeze(2) & (positions != positions.unsqueeze(1))  # (R, L, L)
    return ((margin - own + similarity).relu() * pairs).sum() / pairs.sum().clamp(min=1)


class CaptionTexts(L.LightningDataModule):
    """Batches of captions, each after the start token: shuffled for training, in order for validation.

    Args:
        language_model: its tokenizer is used, and its context must be long enough.
        train: captions, e.g. `FeatureStore(…).split("train").captions`, which stay on disk.
        val: captions.
        batch_size: captions of a batch.
        max_caption_tokens: longer captions are cut; the end token is kept.
        seed: of the shuffling.

    Raises:
        InputError: there are no captions, or captions of that length exceed the language model's context.
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
        longest = math.inf if language_model.context is None else language_model.context - 1
        if batch_size < 1 or not 1 <= max_caption_tokens <= longest:
            raise InputError(
                f"batch_size={batch_size} must be at least 1, and max_caption_tokens={max_caption_tokens} between 1 "
                f"and {longest}, the context of language model '{language_model.name}' less the start token"
            )
        self.tokenizer, self.start = language_model.tokenizer, start_token(language_model)
        self.captions = {"train": _by_rows(train), "val": _by_rows(val)}
        self.batch_size, self.max_caption_tokens, self.seed = batch_size, max_caption_tokens, seed
        self._size_before = batch_size

    def state_dict(self) -> dict[str, Any]:
        """The state that the order of captions depends on."""
        return {"batch_size": self.batch_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; within an epoch, a run continues only with the same batch size."""
        self._size_before = state_dict["batch_size"]

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader("train", ShuffledSampler(len(self.captions["train"]), self.seed, self._taken))

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader("val", None)

    def _taken(self) -> int:
        """The captions of this epoch that a run had read when it was stopped, and that are skipped now."""
        batches = 0 if self.trainer is None else self.trainer.fit_loop.batch_idx + 1
        if batches and self._size_before != self.batch_size:
            raise InputError(f"the run was stopped within an epoch: continue with batch_size={self._size_before}")
        return batches * self.batch_size

    def _loader(self, split: str, sampler: ShuffledSampler | None) -> DataLoader[Batch]:
        captions = self.captions[split]
        return DataLoader(
            range(len(captions)),  # type: ignore[arg-type]
            self.batch_size,
            sampler=sampler,
            collate_fn=lambda rows: self.batch(captions[np.array(rows)]),
            generator=torch.Generator().manual_seed(self.seed),  # separate from torch's default, which dropout uses
        )

    def batch(self, captions: Sequence[str]) -> Batch:
        """Captions -> input ids, targets and lengths, see `Batch`."""
        tokens = self.tokens(captions)
        rows = pad_sequence([torch.tensor(row) for row in tokens], batch_first=True, padding_value=self.start)
        return rows[:, :-1], rows[:, 1:], torch.tensor([len(row) - 1 for row in tokens])

    def tokens(self, captions: Sequence[str]) -> list[list[int]]:
        """The tokens of each caption, cut to `max_caption_tokens`, between start and end token."""
        longest = self.max_caption_tokens
        return [[self.start, *row[:-1][:longest], row[-1]] for row in tokenize_captions(self.tokenizer, list(captions))]


class CaptionLMTraining(L.LightningModule):
    """Fine-tunes a language model on captions.

    It logs `train_loss` and `val_loss`, in nats per token, end tokens included, and `contrastive_loss`.

    Args:
        language_model: loaded with tuning "full" or "lora".
        margin: of the contrastive loss, which is added to the cross-entropy; None: only cross-entropy.
        learning_rate: peak of the learning rate, of AdamW.
        weight_decay: of AdamW.
        warmup_share: share of all steps over which the learning rate rises linearly; then it falls linearly to 0.
        adamw_options: other arguments of `torch.optim.AdamW`, e.g. `eps=1e-6`.

    Raises:
        InputError: the language model cannot be trained, or an argument is out of range.
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
            raise InputError(
                f"margin must lie between 0.0 and 1.0, or be None (null) for cross-entropy only, not {margin}"
            )
        if not 0 < learning_rate < math.inf or not weight_decay >= 0 or not 0 <= warmup_share <= 1:
            raise InputError(
                "learning_rate must be above 0.0, weight_decay at least 0.0 and warmup_share between 0.0 and 1.0, "
                f"not learning_rate={learning_rate} weight_decay={weight_decay} warmup_share={warmup_share}"
            )
        self.language_model = language_model
        self.margin, self.learning_rate = margin, learning_rate
        self.weight_decay, self.warmup_share, self.adamw_options = weight_decay, warmup_share, adamw_options
        self.val_loss = MeanMetric(nan_strategy=math.inf)  # by default it ignores NaN

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
        """Cross-entropy in nats per token, and the (R, L, H) last hidden states."""
        input_ids, targets, lengths = batch
        lm = self.language_model
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        # A causal mask is enough: padding is at the end, where no token attends to it.
        causal = (positions <= positions.unsqueeze(1)).expand(len(input_ids), 1, -1, -1)  # (R, 1, L, L)
        hidden = lm.hidden_states(lm.embed(input_ids), positions.expand_as(input_ids), causal)
        inside = positions < lengths.unsqueeze(1)  # (R, L)
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
        schedule = linear_schedule(optimizer, warmup, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["prefixcap"] = {"language_model": self.language_model.describe()}


class BestFolder(Callback):
    """Saves the weights with the lowest validation loss to a folder that `load_language_model` opens.

    Args:
        folder: replaced atomically whenever a validation is the best so far.

    Attributes:
        loss: the lowest so far, in nats per token.

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
    """Captions that can be indexed by an array of rows."""
    return captions if isinstance(captions, Column) else np.array(captions, dtype=object)
