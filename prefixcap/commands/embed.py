"""Embed the images or sentences of a data set once, into a feature store.

    prefixcap embed data=coco encoder=clip_vit_b32
    prefixcap embed data=cc3m trainer.devices=8

A run that was stopped continues where it was when the same command is given again.
"""

import datetime
import warnings

from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy
from omegaconf import DictConfig
from PIL import Image

from data_prep.stores import make_store, print_summary, store_path
from prefixcap.commands.common.hydra_main import run

OPTIONS = ("features", "store_dtype", "batch_size", "num_workers", "jpeg_scaling", "max_skipped", "regions")


def main(config: DictConfig) -> None:
    """The command. Raises InputError as `make_store` does."""
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such images are skipped, with the reason
    fabric = _launch(**config.trainer)
    device, rank, world = fabric.device, fabric.global_rank, fabric.world_size
    dtype = config.dtype if config.dtype != "auto" else "float16" if device.type == "cuda" else "float32"
    options = {name: config[name] for name in OPTIONS}
    options |= {"task": config.task * world + rank, "tasks": config.tasks * world, "progress": rank == 0}
    report = make_store(config.data, config.encoder.name, device, dtype, **options)
    fabric.barrier()
    if rank == 0:
        print_summary(store_path(config.data.name, config.data.store, config.encoder.name), report)


def _launch(accelerator: str, devices: int | str | list[int], num_nodes: int) -> Fabric:
    """This process among all those of the run; Lightning starts the others."""
    alone = num_nodes == 1 and (devices == 1 or (not isinstance(devices, int | str) and len(devices) == 1))
    # They do nothing together but wait for each other at the end: however long that takes, and on the CPU.
    together = DDPStrategy(process_group_backend="gloo", timeout=datetime.timedelta(days=100))
    fabric = Fabric(
        accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy="auto" if alone else together
    )
    fabric.launch()
    return fabric


if __name__ == "__main__":
    run(main, "embed")
