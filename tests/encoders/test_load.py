import subprocess
import sys

import pytest
import torch
from torch import nn

from prefixcap.encoders import load_encoder
from prefixcap.encoders.common import weights_digest
from prefixcap.errors import InputError


@pytest.mark.parametrize("name", ["", "ViT-B/32", "clip:", "transformers:", "open_clip:", "demo:", "photo:x"])
def test_an_unknown_form_is_told_with_those_that_exist(name: str) -> None:
    with pytest.raises(InputError) as caught:
        load_encoder(name)
    message = str(caught.value)
    assert "\n" not in message and repr(name) in message
    assert all(form in message for form in ("clip:MODEL", "clip:PATH", "transformers:FOLDER", "'photo'", "'demo'"))


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_an_unusable_device_is_told(device: str) -> None:
    with pytest.raises(InputError, match=f"device '{device}' cannot be used") as caught:
        load_encoder("clip:ViT-B/32", device=device)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_back_ends_are_imported_only_when_used() -> None:
    heavy = "{'clip', 'torchvision', 'transformers'}"
    code = f"import sys, prefixcap.encoders; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_digest_depends_on_names_shapes_and_values_alone() -> None:
    def module(weight: torch.Tensor) -> nn.Module:
        layer = nn.Module()
        layer.weight = nn.Parameter(weight)
        return layer

    weight = torch.arange(6.0).reshape(2, 3)
    digest = weights_digest(module(weight))
    # computed once, by hashlib, over b"weight (2, 3)\n" and the 24 bytes
    assert digest == "a786ba499bfbefb1bb1d0b7622f68120d219a50bdef8bf7d5b18f73f3b9d2f6c"
    assert weights_digest(module(weight.half())) == digest
    assert weights_digest(module(weight.T.contiguous().T)) == digest
    with_ids = module(weight)
    with_ids.register_buffer("position_ids", torch.arange(3), persistent=False)
    assert weights_digest(with_ids) == digest
    assert weights_digest(module(weight.reshape(3, 2))) != digest
    assert weights_digest(module(weight + 1e-6)) != digest
