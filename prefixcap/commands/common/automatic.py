"""What the training commands choose where an option is `auto`: by the GPU, and by the data."""

import torch
from lightning.pytorch.utilities import rank_zero_warn
from omegaconf import DictConfig

from prefixcap.store import StoreSplit
from prefixcap.utils.hardware import cpu_has_bfloat16, gpu_has_bfloat16, gpu_name


def choose_precision(config: DictConfig) -> str:
    """Replace `trainer.precision=auto` by a value for this machine, and return it.

    In mixed precision, products that stay in float32 are computed with TF32 on a GPU; otherwise exactly.
    """
    trainer, gpu = config.trainer, _gpu(config)
    if trainer.precision == "auto":
        trainer.precision = "bf16-mixed" if gpu is not None and gpu_has_bfloat16() else "32-true"
    if "bf16" in str(trainer.precision) and bfloat16_is_slow(config):
        rank_zero_warn(
            f"this CPU has no instructions for bfloat16: trainer.precision={trainer.precision} takes many times as "
            "long as trainer.precision=32-true"
        )
    mixed = str(trainer.precision).endswith("-mixed")
    torch.set_float32_matmul_precision("high" if gpu is not None and mixed else "highest")
    return str(trainer.precision)


def choose_grouping(config: DictConfig, split: StoreSplit) -> str:
    """Replace `data.group_captions=auto` by a value for these data, and return a phrase that says what is used.

    Captions are grouped on a GPU, where images have two and more on average. Self-critical training reads no captions
    but its own, and learns from fewer images if they are grouped.
    """
    if config.data.group_captions == "auto":
        from_images = config.model.learns_from == "images" and config.model.objective != "scst"
        several = len(split.captions) >= 2 * len(split)
        config.data.group_captions = _gpu(config) is not None and from_images and several
    return "captions grouped by image" if config.data.group_captions else "captions drawn one by one"


def bfloat16_is_slow(config: DictConfig) -> bool:
    """Whether the trainer's machine computes slower in bfloat16 than in float32."""
    return _gpu(config) is None and not cpu_has_bfloat16()


def _gpu(config: DictConfig) -> str | None:
    """The name of the GPU that the trainer uses; None: it uses none."""
    return gpu_name() if config.trainer.accelerator in ("auto", "gpu", "cuda") else None
