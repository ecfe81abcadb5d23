"""An exponential moving average (EMA) of the weights, for validation and checkpoints in place of the weights."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from prefixcap.errors import InputError
from prefixcap.packing import Batch


class AveragedWeights(Callback):
    """Keeps an exponential moving average of the trained weights: average <- decay * average + (1 - decay) * weights
    after each step, from the weights after the first step on.

    Validation uses the average, `best.ckpt` and `last.ckpt` hold it, and the model has it after training. A resumed run
    continues from the weights themselves, which are in checkpoints, too. Lightning's `EMAWeightAveraging` would also
    copy, average and save a frozen language model.

    Args:
        decay: the average's own share at each step, at least 0 and below 1.

    Raises:
        InputError: the decay is out of its range, or, when training starts, weights are sharded over devices.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0.0 <= decay < 1.0:
            raise InputError(f"the decay of averaged weights must be at least 0 and below 1, not {decay}")
        self._average = get_ema_multi_avg_fn(decay)
        self._other: dict[
            str, Tensor
        ] = {}  # by parameter name: the average or, while that is in the model, the weights
        self._average_in_model = False
        self._step = 0
        self._weights: dict[str, Tensor] = {}  # those in the model: to find them anew in each step takes long

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if type(trainer.strategy) not in (SingleDeviceStrategy, DDPStrategy):
            raise InputError(
                "weights that are sharded over devices cannot be averaged: leave out AveragedWeights "
                "(callbacks=ema), or train on one device or with DDP"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step, self._weights = trainer.global_step, trained_weights(pl_module)
        self._other = {name: weight.to(pl_module.device) for name, weight in self._other.items()}
        self._put(pl_module, average=False)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return  # the gradients of a step are still being summed
        self._step = trainer.global_step
        if not self._other:
            self._other = {name: weight.clone() for name, weight in self._weights.items()}
        self._average(list(self._other.values()), list(self._weights.values()), 0)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._put(pl_module, average=True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._put(pl_module, average=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._put(pl_module, average=True)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self._other:
            return
        weights, average = trained_weights(pl_module), self._other
        if self._average_in_model:
            weights, average = average, weights
        names = {weight: name for name, weight in pl_module.named_parameters()}
        for name, weight in pl_module.named_parameters(remove_duplicate=False):  # a weight may have two names
            if weight.requires_grad:
                checkpoint["state_dict"][name] = average[names[weight]]
        checkpoint["weights_before_averaging"] = weights

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if "weights_before_averaging" in checkpoint:
            self._other, self._average_in_model = checkpoint["weights_before_averaging"], True

    def _put(self, module: L.LightningModule, average: bool) -> None:
        """Exchange what is in the model and in `_other`, so that the model has the average, or else the weights."""
        if not self._other or average == self._average_in_model:
            return
        for name, weight in trained_weights(module).items():
            before = weight.clone()
            weight.copy_(self._other[name])
            self._other[name].copy_(before)
        self._average_in_model = average


def trained_weights(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that require a gradient, by name: detached, in the same memory."""
    return {name: weight.detach() for name, weight in module.named_parameters() if weight.requires_grad}
