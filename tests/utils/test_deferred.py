"""Signatures that are read from source, beside those of the imported functions and classes."""

import importlib
import inspect
import subprocess
import sys

import pytest

from prefixcap.commands.common.conf import config_folder
from prefixcap.commands.common.run_folder import TARGET
from prefixcap.features import Feature
from prefixcap.utils.deferred import deferred, deferred_imports
from prefixcap.utils.options import kind_of

TARGETS = sorted({name for file in config_folder().rglob("*.yaml") for name in TARGET.findall(file.read_text())})
PARTS = [
    "prefixcap.decoding.stepwise.greedy",
    "prefixcap.decoding.stepwise.nucleus",
    "prefixcap.decoding.beam.beam",
    "prefixcap.decoding.contrastive.contrastive",
    "prefixcap.decoding.clipcap.clipcap",
    "prefixcap.mappers.mlp.MLPMapper",
    "prefixcap.mappers.TransformerMapper",  # through the package
    "prefixcap.mappers.query.QueryMapper",
    "prefixcap.mappers.adaptor.AdaptorMapper",
    "prefixcap.language.load_language_model",
    "prefixcap.language.lora.Lora",
    "prefixcap.noise.Noise",
    "prefixcap.sampling.Sampling",
    "prefixcap.zeroshot.magic.Magic",
    "prefixcap.zeroshot.zerocap.ZeroCapOptions",
    "torch.optim.AdamW",
]

with deferred_imports():
    from fractions import Fraction


@pytest.mark.parametrize("name", [*PARTS, *TARGETS])
def test_signature_from_source_is_that_of_the_object(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    real = inspect.signature(getattr(importlib.import_module(module), attribute), eval_str=True)
    read = inspect.signature(deferred(name))
    assert [(each.name, each.kind) for each in read.parameters.values()] == [
        (each.name, each.kind) for each in real.parameters.values()
    ]
    for parameter in real.parameters.values():
        if read.parameters[parameter.name].default is not ...:
            assert read.parameters[parameter.name].default == parameter.default
        if kind_of(parameter.annotation) is not None:
            assert read.parameters[parameter.name].annotation == parameter.annotation


def test_docstring_and_literals_of_a_class() -> None:
    metric = deferred("prefixcap.metrics.bleu.Bleu")
    real = importlib.import_module("prefixcap.metrics.bleu").Bleu
    assert inspect.getdoc(metric) == inspect.getdoc(real)
    assert metric.name == real.name == "BLEU"
    assert deferred("prefixcap.mappers.adaptor.AdaptorMapper").features is Feature.REGIONS


def test_stand_ins_of_classes() -> None:
    class Half(Fraction):
        pass

    import fractions

    assert isinstance(fractions.Fraction(1, 2), Fraction) and not isinstance(0.5, Fraction)
    assert Fraction(1, 2) == fractions.Fraction(1, 2) and issubclass(Half, fractions.Fraction)
    assert Fraction.from_float(0.5) == fractions.Fraction(1, 2)


def test_nothing_is_imported_before_it_is_used() -> None:
    code = """
import sys
from prefixcap.utils.deferred import deferred_imports
with deferred_imports():
    import colorsys
    from wave import open as open_wave
    def annotated(wave: open_wave | None) -> None: ...
import json.tool
print("json.tool" in sys.modules, "colorsys" in sys.modules, "wave" in sys.modules)
print(colorsys.rgb_to_hsv(0, 0, 0), "wave" in sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ["True False False", "(0.0, 0.0, 0) False"]


def test_what_does_not_exist() -> None:
    with pytest.raises(ImportError, match=r"cannot import name 'nothing' from 'prefixcap\.noise'"):
        deferred("prefixcap.noise.nothing")()
