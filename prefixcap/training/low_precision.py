"""Training in mixed precision without casting the frozen weights of the language model in each step."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy

from prefixcap.language import LanguageModel
from prefixcap.language.low_precision import cast_frozen_layers


class LowPrecisionWeights(Callback):
    """Keeps frozen weights of linear layers in the precision of autocast while a model is trained.

    Losses, gradients and checkpoints are the same. In full precision, with quantized weights, and where a strategy
    shards weights or has a precision of its own (FSDP, DeepSpeed), it does nothing.

    Args:
        language_model: the model; after training it has its float32 weights again.
    """

    def __init__(self, language_model: LanguageModel) -> None:
        self.language_model = language_model
        self._restore: list[Callable[[], None]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        plugin, model = trainer.precision_plugin, self.language_model
        sharded = isinstance(trainer.strategy, ModelParallelStrategy)
        if not isinstance(plugin, MixedPrecision) or sharded or model.quantization is not None:
            return
        dtype = torch.bfloat16 if plugin.precision == "bf16-mixed" else torch.float16
        self._restore.append(cast_frozen_layers(model.model, dtype))

    def on_exception(self, *_: Any) -> None:
        self._restore_weights()

    def teardown(self, *_: Any, **__: Any) -> None:
        self._restore_weights()

    def _restore_weights(self) -> None:
        while self._restore:
            self._restore.pop()()
