"""Training in several processes: how they exchange values, and models that are sharded over them."""

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
from prefixcap.mappers import CrossAttentionMapper
from prefixcap.utils.files import replace_folder

Value = TypeVar("Value")

__getattr__ = renamed.attributes(__name__)


def _world_size() -> int:
    initialized = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if initialized else 1


def all_gather_objects(value: Value) -> list[Value]:
    """The values of all processes, in the order of their ranks; a value must be picklable."""
    values: list[Any] = [value] * _world_size()
    if len(values) > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def all_reduce_mean(value: Tensor) -> Tensor:
    """The mean over processes. Unlike Lightning's reduction, it has no barrier, at which processes and GPUs wait."""
    if _world_size() == 1:
        return value
    total = value.clone()
    torch.distributed.all_reduce(total)
    return total / _world_size()


def all_reduce_max(value: Tensor) -> Tensor:
    """The maximum over processes; as `all_reduce_mean`, without a barrier."""
    if _world_size() == 1:
        return value
    maximum = value.clone()
    torch.distributed.all_reduce(maximum, torch.distributed.ReduceOp.MAX)
    return maximum


class FSDP2Strategy(ModelParallelStrategy):
    """Shards weights, gradients and the optimizer's state over all processes (FSDP; Zhao et al. 2023).

    Checkpoints are gathered in the first process, and are like those of any other run.
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def shard(self, captioner: Captioner) -> None:
        """Shard a captioner in place. Each layer of its language model gathers its weights when it runs."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        if isinstance(captioner.mapper, CrossAttentionMapper):
            raise InputError(
                "the weights of cross-attention are used within the layers of the language model, where FSDP does not "
                "gather them: train with ddp, or with a mapper that makes a prefix"
            )
        layers = [module for module in captioner.modules() if isinstance(module, GradientCheckpointingLayer)]
        for module in (*layers, captioner.mapper, captioner):  # the mapper may be in another precision
            fully_shard(module, mesh=self.device_mesh["data_parallel"])
        for method in ("loss", "states"):
            register_fsdp_forward_method(captioner, method)
        warnings.filterwarnings("ignore", ".*returned a view tensor")  # a prefix, which nothing changes in place

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The trained weights, in the first process; frozen weights are not gathered."""
        assert self.model is not None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        return get_model_state_dict(self.model, options=options)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Keep all weights of a sharded model gathered, for work that each process does at its own pace, as decoding."""
    shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if isinstance(model, FSDPModule):
        model._get_fsdp_state()._lazy_init()  # or the first layer to run would take itself for the root of the model
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
    """DeepSpeed with atomic checkpoints: an interrupted write leaves the one before."""

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
    """Lightning's `DeepSpeedStrategy` (ZeRO; Rajbhandari et al. 2020) with atomic checkpoints.

    Args:
        stage: 1 shards the optimizer's state; 2 shards the gradients, too.
        options: other arguments of `DeepSpeedStrategy`.

    Raises:
        InputError: DeepSpeed is not installed, or `stage` is neither 1 nor 2.
    """
    if stage not in (1, 2):
        raise InputError(f"stage must be 1 or 2, not {stage}: FSDP2Strategy (trainer=fsdp) shards weights, too")
    if importlib.util.find_spec("deepspeed") is None:
        raise InputError("this strategy needs DeepSpeed: pip install 'prefixcap[deepspeed]'")
    return AtomicDeepSpeedStrategy(stage=stage, exclude_frozen_parameters=True, **options)


def local_shard(weight: Tensor) -> Tensor:
    """This process's shard of a sharded tensor; another tensor as it is."""
    return weight.to_local() if isinstance(weight, DTensor) else weight
