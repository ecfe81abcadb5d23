"""Train a captioner: `python train.py [model=…] [data=…]`. The script itself is prefixcap/commands/train.py."""

from prefixcap.commands.common.hydra_main import run
from prefixcap.commands.train import main

if __name__ == "__main__":
    run(main, "train")
