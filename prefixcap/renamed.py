"""Old names that keep working, with a `FutureWarning`, until they are removed."""

import functools
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import InspectLoader, Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any, cast

REMOVED_IN = "0.4"

MODULES = {
    "prefixcap.cli": "prefixcap.commands",
    "prefixcap.cli.__main__": "prefixcap.__main__",
    "prefixcap.metrics.scorer": "prefixcap.metrics.metric",
    "prefixcap.sharing.model_card": "prefixcap.checkpoints.model_card",
    "prefixcap.sharing.pretrained": "prefixcap.checkpoints.pretrained",
    "prefixcap.textonly.figures": "prefixcap.commands.noise_variance",
    "prefixcap.textonly.noise": "prefixcap.noise",
    "prefixcap.training.ablation": "prefixcap.commands.prefix_length",
    "prefixcap.training.averaging": "prefixcap.training.ema",
    "prefixcap.training.cross_entropy": "prefixcap.training.module",
    "prefixcap.training.tracking": "prefixcap.training.loggers",
    "prefixcap.zeroshot.figures": "prefixcap.commands.zerocap_lambda",
}
"""Modules that documents or configurations named: the old name, and the new one."""

NAMES = {
    "prefixcap.checkpoints.load": "prefixcap.captioner.load",
    "prefixcap.checkpoints.pretrained.load": "prefixcap.captioner.load",
    "prefixcap.decoding.Rules": "prefixcap.decoding.GenerationLimits",
    "prefixcap.decoding.rules.Rules": "prefixcap.decoding.rules.GenerationLimits",
    "prefixcap.decoding.stepwise.write": "prefixcap.decoding.stepwise.generate",
    "prefixcap.metrics.SCORERS": "prefixcap.metrics.registry.METRICS",
    "prefixcap.metrics.captions.SCORERS": "prefixcap.metrics.registry.METRICS",
    "prefixcap.metrics.metric.Scorer": "prefixcap.metrics.metric.Metric",
    "prefixcap.training.distributed.FullySharded": "prefixcap.training.distributed.FSDP2Strategy",
}
"""Likewise functions and classes. Their modules say `__getattr__ = renamed.attributes(__name__)`."""


def warn(old: str, new: str) -> None:
    """Say that `old` is called `new` now."""
    warnings.warn(f"{old} is called {new} now; the old name goes in {REMOVED_IN}", FutureWarning, stacklevel=3)


def current(name: str) -> str:
    """What a class or function is called now that was called `name`, e.g. in the configuration of an older run."""
    module, _, attribute = name.rpartition(".")
    name = f"{MODULES.get(module, module)}.{attribute}"
    return NAMES.get(name, name)


def attributes(module: str) -> Callable[[str], Any]:
    """The `__getattr__` of a module with names in `NAMES`."""

    def get(name: str) -> Any:
        old = f"{module}.{name}"
        if old not in NAMES:
            raise AttributeError(f"module '{module}' has no attribute '{name}'")
        warn(old, NAMES[old])
        home, _, attribute = NAMES[old].rpartition(".")
        return getattr(importlib.import_module(home), attribute)

    return get


def method(old: str, new: Callable[..., Any]) -> Any:
    """A method's old name, to be assigned in its class."""

    @functools.wraps(new)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        warn(f"{type(self).__name__}.{old}", new.__name__)
        return getattr(self, new.__name__)(*args, **kwargs)

    return call


class _Finder(MetaPathFinder, Loader):
    """Imports the module of the new name where one of `MODULES` is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in MODULES:
            return None
        return ModuleSpec(fullname, self, is_package=fullname == "prefixcap.cli")

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        warn(name, MODULES[name])
        sys.modules[name] = importlib.import_module(MODULES[name])

    def get_code(self, fullname: str) -> CodeType | None:
        """For `python -m`."""
        spec = importlib.util.find_spec(MODULES[fullname])
        return None if spec is None else cast(InspectLoader, spec.loader).get_code(spec.name)


def install() -> None:
    """Let the modules in `MODULES` be imported by their old names."""
    sys.meta_path.insert(0, _Finder())
