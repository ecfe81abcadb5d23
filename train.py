"""Train a captioner: `python train.py [model=…] [data=…]`. The script itself is prefixcap/scripts/train.py."""

from prefixcap.scripts.launch import run
from prefixcap.scripts.train import main

if __name__ == "__main__":
    run(main, "train")
