"""A language model that an encoder steers, as the group `method` of a configuration describes it."""

import torch
from omegaconf import DictConfig

from prefixcap.commands.common.checks import method_options
from prefixcap.encoders import load_encoder
from prefixcap.language import load_language_model
from prefixcap.utils.hardware import usable_device
from prefixcap.utils.hub import missing_language_model, naming
from prefixcap.zeroshot.magic import Magic
from prefixcap.zeroshot.zerocap import ZeroCap


def load_steered(method: DictConfig, encoder: str, lm: str, device: str) -> ZeroCap | Magic:
    """Load what captions without training.

    Args:
        method: the group; its encoder and its language model may be left open.
        encoder, lm: their names.
        device: "cpu", "cuda:1" or "auto".

    Raises:
        InputError: there is no such device, encoder or language model, or an option is out of range.
    """
    chosen = usable_device(device)
    with naming(missing_language_model, lm):
        opened = load_encoder(encoder, chosen, getattr(torch, method.encoder_dtype))
    kind = Magic if method.name == "magic" else ZeroCap
    return kind(opened, load_language_model(lm).to(chosen), **method_options(method))
