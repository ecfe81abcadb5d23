"""Training in several processes: what they tell each other, and models that are sharded over them."""

import importlib.util
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from prefixcap import renamed
from prefixcap.captioner import Captioner
from prefixcap.errors import InputError
from prefixcap.utils.files import replace_folder

Value = TypeVar("Value")

__getattr__ = renamed.attributes(__name__)


def _processes() -> int:
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if together else 1


def all_gather_objects(value: Value) -> list[Value]:
    """What each process gave, in their order; it must be picklable."""
    values: list[Any] = [value] * _processes()
    if len(values) > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def all_reduce_mean(value: Tensor) -> Tensor:
    """The mean of what the processes gave. Unlike Lightning's, it does not have them, and their GPUs, wait first."""
    if _processes() == 1:
        return value
    total = value.clone()
    torch.distributed.all_reduce(total)
    return total / _processes()


def all_reduce_max(value: Tensor) -> Tensor:
    """The greatest of what the processes gave; they do not wait for each other first, either."""
    if _processes() == 1:
        return value
    greatest = value.clone()
    torch.distributed.all_reduce(greatest, torch.distributed.ReduceOp.MAX)
    return greatest


class FSDP2Strategy(ModelParallelStrategy):
    """Shards weights, gradients and the optimizer's state over all processes (FSDP; Zhao et al. 2023).

    Checkpoints are assembled in the first process, and are like those of any other run.
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def shard(self, captioner: Captioner) -> None:
        """Shard a captioner, in place: the weights of each layer of its language model are gathered when it runs."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        layers = [module for module in captioner.modules() if isinstance(module, GradientCheckpointingLayer)]
        for module in (*layers, captioner.mapper, captioner):  # the mapper may be in another precision
            fully_shard(module, mesh=self.device_mesh["data_parallel"])
        for method in ("loss", "states"):
            register_fsdp_forward_method(captioner, method)
        warnings.filterwarnings("ignore", ".*returned a view tensor")  # a prefix, which nothing changes in place

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The trained weights, in the first process alone; nothing else is gathered."""
        assert self.model is not None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        return get_model_state_dict(self.model, options=options)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Keep all weights of a sharded model gathered, for what each process does at its own pace, as decoding."""
    shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if isinstance(model, FSDPModule):
        model._get_fsdp_state()._lazy_init()  # or the first layer that runs would take itself for the whole model
    for shard in shards:
        shard.set_reshard_after_forward(False, recurse=False)
        shard.set_reshard_after_backward(False, recurse=False)
        shard.unshard()
    try:
        yield
    finally:
        for shard in shards:
            shard.reshard()
            shard.set_reshard_after_forward(shard is not model, recurse=False)
            shard.set_reshard_after_backward(True, recurse=False)


class AtomicDeepSpeedStrategy(DeepSpeedStrategy):
    """DeepSpeed, with checkpoints that are written whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        path = Path(self.broadcast(filepath))
        new = path.with_name(f".{path.name}.new")
        if self.is_global_zero:
            shutil.rmtree(new, ignore_errors=True)
        self.barrier()
        super().save_checkpoint(checkpoint, new, storage_options)
        self.barrier()
        if self.is_global_zero:
            replace_folder(path, new)
        self.barrier()


def deepspeed(stage: int = 2, **options: Any) -> AtomicDeepSpeedStrategy:
    """Lightning's strategy for DeepSpeed (ZeRO; Rajbhandari et al. 2020), see there for other options.

    Args:
        stage: 1 shards the optimizer's state, 2 the gradients, too.

    Raises:
        InputError: DeepSpeed is not installed, or `stage` is none of these.
    """
    if stage not in (1, 2):
        raise InputError(f"trainer.strategy.stage is 1 or 2, not {stage}: weights are sharded by trainer=fsdp")
    if importlib.util.find_spec("deepspeed") is None:
        raise InputError("trainer=deepspeed needs DeepSpeed: pip install 'prefixcap[deepspeed]'")
    return AtomicDeepSpeedStrategy(stage=stage, exclude_frozen_parameters=True, **options)


def local_shard(weight: Tensor) -> Tensor:
    """What this process holds of a sharded tensor; of another, all."""
    return weight.to_local() if isinstance(weight, DTensor) else weight
