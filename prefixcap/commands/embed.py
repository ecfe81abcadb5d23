"""`prefixcap embed`: embed the images or sentences of a data set once, into a feature store; see conf/embed.yaml."""

import datetime
import sys
import warnings

from omegaconf import DictConfig
from PIL import Image

from data_prep.stores import make_store, make_store_on_cluster, print_summary, read_checked, store_path
from prefixcap.commands.common.hydra_main import run
from prefixcap.errors import InputError
from prefixcap.renamed import REMOVED_IN
from prefixcap.utils.cluster import connect
from prefixcap.utils.deferred import deferred_imports

with deferred_imports():  # what follows imports torch: it waits until the options are checked
    from lightning.fabric import Fabric
    from lightning.fabric.strategies.ddp import DDPStrategy

OPTIONS = (
    "features",
    "store_dtype",
    "batch_size",
    "num_workers",
    "fast_decode",
    "max_skipped",
    "regions",
)


def main(config: DictConfig) -> None:
    """Make the store, or finish it. Raises InputError as `make_store` does."""
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # they are skipped, with the reason
    if config.jpeg_scaling is not None:
        print(f"jpeg_scaling= is called fast_decode= now; the old name goes in {REMOVED_IN}", file=sys.stderr)
        config.fast_decode = config.jpeg_scaling
    if config.engine is not None:
        _check_engine(config)
    # Read first, in each process: mistakes show before Lightning is imported.
    dataset = read_checked(config.data, "float32" if config.dtype == "auto" else config.dtype, config.store_dtype)
    options = {name: config[name] for name in OPTIONS}
    if config.engine is not None:
        connect()  # before torch is imported
        report = make_store_on_cluster(
            config.data, config.encoder.name, config.trainer.accelerator, config.dtype, dataset=dataset,
            task=config.task, tasks=config.tasks, **options
        )  # fmt: skip
        print_summary(store_path(config.data.name, config.data.store, config.encoder.name), report)
        return
    fabric = _launch(**config.trainer)
    device, rank, world = fabric.device, fabric.global_rank, fabric.world_size
    dtype = config.dtype if config.dtype != "auto" else "float16" if device.type == "cuda" else "float32"
    options |= {"task": config.task * world + rank, "tasks": config.tasks * world, "progress": rank == 0}
    report = make_store(config.data, config.encoder.name, device, dtype, dataset=dataset, **options)
    fabric.barrier()
    if rank == 0:
        print_summary(store_path(config.data.name, config.data.store, config.encoder.name), report)


def _check_engine(config: DictConfig) -> None:
    """Raise InputError unless the engine exists and the other options leave the work to it."""
    if config.engine != "ray":
        raise InputError(f"there is no engine={config.engine}: give engine=ray, or leave it out")
    several = [f"trainer.{name}={config.trainer[name]}" for name in ("devices", "num_nodes")]
    if given := [option for option in several if not option.endswith("=1")]:
        raise InputError(f"engine=ray takes all of the cluster: leave out {', '.join(given)}")
    if config.trainer.accelerator not in ("auto", "cpu", "gpu"):
        raise InputError(f"there is no trainer.accelerator={config.trainer.accelerator}: choose auto, cpu or gpu")


def _launch(accelerator: str, devices: int | str | list[int], num_nodes: int) -> Fabric:
    """This process of the run; Lightning starts the others."""
    single = num_nodes == 1 and (devices == 1 or (not isinstance(devices, int | str) and len(devices) == 1))
    # The processes only wait for each other at the end, for however long, on the CPU.
    several = DDPStrategy(process_group_backend="gloo", timeout=datetime.timedelta(days=100))
    fabric = Fabric(
        accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy="auto" if single else several
    )
    fabric.launch()
    return fabric


if __name__ == "__main__":
    run(main, "embed")
